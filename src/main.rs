//! The `memfs` binary: all of it is in the library's `cli`.

fn main() -> std::process::ExitCode {
    memfs::cli::main()
}
