//! A file, mapped, and looked at as a debugger would: a page that cannot be had is an error.

use memmap2::{MmapOptions, MmapRaw};
use std::fs::File;
use std::os::unix::fs::FileExt;

pub struct Mapped {
    mapping: MmapRaw,
    memory: File,
}

impl Mapped {
    /// All of a file, to be read.
    #[track_caller]
    pub fn new(file: &File) -> Mapped {
        let len = file.metadata().unwrap().len() as usize;
        let mapping = MmapOptions::new().len(len).map_raw_read_only(file);
        Mapped {
            mapping: mapping.unwrap(),
            memory: File::open("/proc/self/mem").unwrap(),
        }
    }

    /// All of a file, to be stored to as well.
    #[track_caller]
    pub fn to_write(file: &File) -> Mapped {
        let len = file.metadata().unwrap().len() as usize;
        let mut memory = File::options();
        let memory = memory.read(true).write(true).open("/proc/self/mem");
        Mapped {
            mapping: MmapOptions::new().len(len).map_raw(file).unwrap(),
            memory: memory.unwrap(),
        }
    }

    /// All that is mapped.
    #[track_caller]
    pub fn read(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.mapping.len()];
        let address = self.mapping.as_ptr() as u64;
        self.memory.read_exact_at(&mut bytes, address).unwrap();
        bytes
    }

    #[track_caller]
    pub fn store(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.mapping.len());
        let address = self.mapping.as_ptr() as u64 + at as u64;
        self.memory.write_all_at(bytes, address).unwrap();
    }

    /// msync(2) with MS_SYNC.
    #[track_caller]
    pub fn sync(&self) {
        self.mapping.flush().unwrap();
    }
}
