//! A program that holds files and mappings open while a test looks on: a Python interpreter that is
//! told line by line what to do.

use super::python;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

/// Reads one line at a time, newlines in it written as U+001F, evaluates or executes it, and prints
/// one line: `ok` and what it gave, or `error` and what went wrong.
const DRIVER: &str = r#"
import errno, mmap, os, sys
scope = {"mmap": mmap, "os": os}
def handle(code):
    try:
        try:
            compiled = compile(code, "hands", "eval")
        except SyntaxError:
            exec(compile(code, "hands", "exec"), scope)
            return "ok"
        return "ok " + repr(eval(compiled, scope))
    except OSError as error:
        return "error " + errno.errorcode.get(error.errno, str(error))
    except BaseException as error:
        return "error " + repr(error)
for line in sys.stdin:
    print(handle(line.rstrip("\n").replace("\x1f", "\n")).replace("\n", " "), flush=True)
"#;

/// The program.
pub struct Hands {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Hands {
    /// Starts it; where there is no Python, says that `test` is left out.
    pub fn new(test: &str) -> Option<Hands> {
        let mut command = python(test, "mmap")?;
        command.args(["-u", "-c", DRIVER]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        Some(Hands {
            stdin: child.stdin.take().unwrap(),
            stdout: BufReader::new(child.stdout.take().unwrap()),
            child,
        })
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended.
    pub fn is_gone(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Begins to do something; [`Hands::answer`] tells how it went.
    pub fn begin(&mut self, code: &str) {
        let line = code.trim().replace('\n', "\x1f") + "\n";
        self.stdin.write_all(line.as_bytes()).unwrap();
    }

    /// What it gave, as Python writes it; or which error: `ENOENT`, or the signal that ended the program.
    pub fn answer(&mut self) -> Result<String, String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        match line.trim_end().split_once(' ') {
            Some(("ok", value)) => Ok(value.to_owned()),
            Some((_, error)) => Err(error.to_owned()),
            None if line.starts_with("ok") => Ok(String::new()),
            None => Err(self.child.wait().unwrap().to_string()),
        }
    }

    /// Does something that may fail.
    pub fn try_do(&mut self, code: &str) -> Result<String, String> {
        self.begin(code);
        self.answer()
    }

    /// Does something that is to go well.
    #[track_caller]
    pub fn make(&mut self, code: &str) -> String {
        match self.try_do(code) {
            Ok(value) => value,
            Err(error) => panic!("{code}: {error}"),
        }
    }
}

impl Drop for Hands {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
}
