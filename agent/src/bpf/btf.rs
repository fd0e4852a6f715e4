//! Where fields lie in the structures of the running kernel, from its own type information.
//!
//! BPF programs written in Rust carry no relocations that a loader could adjust, so the agent resolves each
//! field by name at load time and hands the table to the programs as a read-only global. aya's own BTF reader
//! does not tell member offsets. The reader trusts nothing: a truncated or strange file gives absent fields.

use std::collections::HashSet;
use std::fs;

use aya::{Btf, Endianness};
use swarmguard_common::kernel::{OFFSETS, offset};

/// The kernel's own description of its types: some MiB.
const FILE: &str = "/sys/kernel/btf/vmlinux";

/// What programs are tied to, with the kind of type that stands for it.
const ATTACHED_TO: [(u32, &str); 5] = [
    (KIND_FUNC, "bpf_iter_cgroup"),
    (KIND_TYPEDEF, "btf_trace_sched_switch"),
    (KIND_TYPEDEF, "btf_trace_cgroup_mkdir"),
    (KIND_TYPEDEF, "btf_trace_cgroup_rmdir"),
    (KIND_TYPEDEF, "btf_trace_mark_victim"),
];

const MAGIC: u16 = 0xeb9f;
const KIND_PTR: u32 = 2;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_FWD: u32 = 7;
const KIND_TYPEDEF: u32 = 8;
const KIND_FUNC: u32 = 12;
const KIND_FUNC_PROTO: u32 = 13;
/// Anonymous structures within structures are followed this deep.
const MAX_NESTING: usize = 8;
/// Most members looked at for one name: a damaged file may nest structures in themselves many times over.
const MAX_MEMBERS: usize = 100_000;

/// What is kept of the running kernel's type information.
pub(super) struct KernelTypes {
    /// For aya, which looks up the numbers of types that programs are tied to.
    pub(super) numbers: Btf,
    /// Where fields lie; see [`offset`].
    pub(super) offsets: [u32; OFFSETS],
    /// The tracepoint `mark_victim` tells the task, not only its number.
    pub(super) victim_is_task: bool,
}

impl KernelTypes {
    /// Reads the running kernel's. `None`: it has none, or it is not visible here.
    pub(super) fn read() -> Option<Self> {
        // aya would take 40 MiB for the whole file, and keeps copies while it reads: first let go of ours.
        let (skeleton, offsets, victim_is_task) = {
            let file = fs::read(FILE).ok()?;
            let info = TypeInfo::parse(&file)?;
            let victim_is_task = info.tracepoint_takes_pointer("mark_victim", 0);
            (info.skeleton(&ATTACHED_TO)?, offsets(&info), victim_is_task)
        };
        let numbers = Btf::parse(&skeleton, Endianness::default()).ok()?;
        Some(Self { numbers, offsets, victim_is_task })
    }
}

/// The kernel's type information.
struct TypeInfo<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where each type begins in `types`; number 1 is the first.
    starts: Vec<u32>,
}

#[derive(Clone, Copy)]
struct Type<'a> {
    name: u32,
    kind: u32,
    len: usize,
    bitfields: bool,
    /// Size, or number of the type it refers to.
    to: u32,
    rest: &'a [u8],
}

impl<'a> TypeInfo<'a> {
    /// Reads the contents of `/sys/kernel/btf/vmlinux`. `None`: that is no such file.
    fn parse(file: &'a [u8]) -> Option<Self> {
        if u16::from_ne_bytes(file.get(..2)?.try_into().ok()?) != MAGIC {
            return None;
        }
        let header = word(file, 4)? as usize;
        let section = |at: usize| -> Option<&'a [u8]> {
            let start = header.checked_add(word(file, at)? as usize)?;
            file.get(start..start.checked_add(word(file, at + 4)? as usize)?)
        };
        let (types, strings) = (section(8)?, section(16)?);
        let mut info = Self { types, strings, starts: vec![0] };
        let mut at = 0;
        while at < types.len() {
            info.starts.push(u32::try_from(at).ok()?);
            at += 12 + payload(&info.at(at)?)?;
        }
        Some(info)
    }

    fn at(&self, at: usize) -> Option<Type<'a>> {
        let bytes = self.types.get(at..)?;
        let about = word(bytes, 4)?;
        Some(Type {
            name: word(bytes, 0)?,
            kind: about >> 24 & 0x1f,
            len: (about & 0xffff) as usize,
            bitfields: about >> 31 == 1,
            to: word(bytes, 8)?,
            rest: bytes.get(12..)?,
        })
    }

    fn number(&self, number: u32) -> Option<Type<'a>> {
        if number == 0 {
            return None;
        }
        self.at(*self.starts.get(number as usize)? as usize)
    }

    fn name(&self, at: u32) -> &'a [u8] {
        let tail = self.strings.get(at as usize..).unwrap_or_default();
        tail.split(|byte| *byte == 0).next().unwrap_or_default()
    }

    fn find(&self, kind: u32, name: &str) -> Option<Type<'a>> {
        let numbers = 1..u32::try_from(self.starts.len()).ok()?;
        numbers
            .filter_map(|number| self.number(number))
            .find(|found| found.kind == kind && found.name != 0 && self.name(found.name) == name.as_bytes())
    }

    /// The value of an enumerator of a named enumeration.
    fn enumerator(&self, of: &str, name: &str) -> Option<u32> {
        let found = self.find(KIND_ENUM, of)?;
        (0..found.len).find_map(|index| {
            let at = index * 8;
            (self.name(word(found.rest, at)?) == name.as_bytes()).then(|| word(found.rest, at + 4))?
        })
    }

    /// Type information of the same numbers in which nothing has a name but what is wanted.
    fn skeleton(&self, wanted: &[(u32, &str)]) -> Option<Vec<u8>> {
        let mut strings = vec![0];
        let mut types = Vec::with_capacity(self.starts.len() * 12);
        let mut end = 0;
        for number in 1..u32::try_from(self.starts.len()).ok()? {
            let of = self.number(number)?;
            let named =
                wanted.iter().find(|(kind, name)| of.kind == *kind && self.name(of.name) == name.as_bytes());
            let (name, about, to) = match named {
                Some((kind, name)) => {
                    end = types.len() + 12;
                    let at = u32::try_from(strings.len()).ok()?;
                    strings.extend_from_slice(name.as_bytes());
                    strings.push(0);
                    (at, kind << 24, of.to)
                }
                None => (0, KIND_FWD << 24, 0),
            };
            [name, about, to].iter().for_each(|word| types.extend_from_slice(&word.to_ne_bytes()));
        }
        // Nobody asks for what comes after the last name.
        types.truncate(end);
        let (types_len, strings_len) = (u32::try_from(types.len()).ok()?, u32::try_from(strings.len()).ok()?);
        let mut file = MAGIC.to_ne_bytes().to_vec();
        // Version 1, no flags.
        file.extend_from_slice(&[1, 0]);
        let header = [24, 0, types_len, types_len, strings_len];
        header.iter().for_each(|word: &u32| file.extend_from_slice(&word.to_ne_bytes()));
        file.extend_from_slice(&types);
        file.extend_from_slice(&strings);
        Some(file)
    }

    /// Whether argument `index` of a tracepoint's callback is a pointer. The callback's first argument, which no
    /// program sees, does not count.
    fn tracepoint_takes_pointer(&self, tracepoint: &str, index: usize) -> bool {
        let argument = || {
            let pointer = self.number(self.find(KIND_TYPEDEF, &format!("btf_trace_{tracepoint}"))?.to)?;
            let function = self.number(pointer.to)?;
            if function.kind != KIND_FUNC_PROTO || function.len <= index + 1 {
                return None;
            }
            self.plain(word(function.rest, (index + 1) * 8 + 4)?)
        };
        argument().is_some_and(|found| found.kind == KIND_PTR)
    }

    /// Follows typedefs and qualifiers.
    fn plain(&self, mut number: u32) -> Option<Type<'a>> {
        for _ in 0..MAX_NESTING {
            let found = self.number(number)?;
            match found.kind {
                KIND_TYPEDEF | 9..=11 | 18 => number = found.to,
                _ => return Some(found),
            }
        }
        None
    }

    /// Offset of a field in bytes, by the names on the way to it from a named structure.
    fn offset(&self, of: &str, path: &[&str]) -> Option<u32> {
        self.resolve(of, path).map(|(offset, _)| offset)
    }

    /// As [`Self::offset`], where the field is a pointer.
    fn pointer(&self, of: &str, path: &[&str]) -> Option<u32> {
        self.resolve(of, path).filter(|(_, found)| found.kind == KIND_PTR).map(|(offset, _)| offset)
    }

    /// Offset of an element of an array of pointers.
    fn element(&self, of: &str, path: &[&str], index: u32) -> Option<u32> {
        let (offset, found) = self.resolve(of, path)?;
        let element = self.plain(word(found.rest, 0)?)?;
        let length = word(found.rest, 8)?;
        let fits = found.kind == KIND_ARRAY && element.kind == KIND_PTR && index < length;
        if fits { offset.checked_add(index.checked_mul(8)?) } else { None }
    }

    fn resolve(&self, of: &str, path: &[&str]) -> Option<(u32, Type<'a>)> {
        let (mut bits, mut left) = (0_u32, MAX_MEMBERS);
        let mut found = self.find(KIND_STRUCT, of)?;
        for name in path {
            let (at, number) = self.member(&found, name, MAX_NESTING, &mut left)?;
            bits = bits.checked_add(at)?;
            found = self.plain(number)?;
        }
        (bits % 8 == 0).then_some((bits / 8, found))
    }

    /// Bit offset and type of a member, looked for in anonymous members too.
    fn member(&self, of: &Type<'a>, name: &str, nesting: usize, left: &mut usize) -> Option<(u32, u32)> {
        if nesting == 0 || !matches!(of.kind, KIND_STRUCT | KIND_UNION) {
            return None;
        }
        for index in 0..of.len {
            *left = left.checked_sub(1)?;
            let at = index * 12;
            let (called, number, mut bits) =
                (word(of.rest, at)?, word(of.rest, at + 4)?, word(of.rest, at + 8)?);
            if of.bitfields {
                if bits >> 24 != 0 {
                    continue;
                }
                bits &= 0x00ff_ffff;
            }
            if called != 0 && self.name(called) == name.as_bytes() {
                return Some((bits, number));
            }
            if called == 0
                && let Some((inner, found)) =
                    self.plain(number).and_then(|anonymous| self.member(&anonymous, name, nesting - 1, left))
            {
                return Some((bits.checked_add(inner)?, found));
            }
        }
        None
    }
}

/// Bytes that follow the three words of a type.
fn payload(of: &Type<'_>) -> Option<usize> {
    Some(match of.kind {
        1 | 14 | 17 => 4,
        KIND_ARRAY => 12,
        KIND_STRUCT | KIND_UNION | 15 | 19 => of.len * 12,
        KIND_ENUM | KIND_FUNC_PROTO => of.len * 8,
        KIND_PTR | KIND_FWD..=KIND_FUNC | 16 | 18 => 0,
        // A kind of a later kernel, whose length is not known: what follows cannot be read.
        _ => return None,
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// The table for the programs; [`offset::ABSENT`] for what this kernel does not have.
fn offsets(info: &TypeInfo<'_>) -> [u32; OFFSETS] {
    let mut table = [offset::ABSENT; OFFSETS];
    let mut set = |index: usize, at: Option<u32>| {
        if let (Some(slot), Some(at)) = (table.get_mut(index), at) {
            *slot = at;
        }
    };
    let controller = |name| {
        let index = info.enumerator("cgroup_subsys_id", name)?;
        info.element("cgroup", &["subsys"], index)
    };
    set(offset::CGROUP_KN, info.pointer("cgroup", &["kn"]));
    set(offset::KN_ID, info.offset("kernfs_node", &["id"]));
    set(offset::CGROUP_LEVEL, info.offset("cgroup", &["level"]));
    set(offset::CGROUP_ROOT, info.pointer("cgroup", &["root"]));
    set(offset::ROOT_HIERARCHY, info.offset("cgroup_root", &["hierarchy_id"]));
    set(offset::CGROUP_CPU, info.offset("cgroup", &["bstat", "cputime", "sum_exec_runtime"]));
    set(offset::CGROUP_CSS_CPU, controller("cpu_cgrp_id"));
    set(offset::CGROUP_CSS_MEMORY, controller("memory_cgrp_id"));
    set(offset::TG_PERIODS, info.offset("task_group", &["cfs_bandwidth", "nr_periods"]));
    set(offset::TG_THROTTLED, info.offset("task_group", &["cfs_bandwidth", "nr_throttled"]));
    set(offset::TG_THROTTLED_TIME, info.offset("task_group", &["cfs_bandwidth", "throttled_time"]));
    set(offset::MEMCG_USAGE, info.offset("mem_cgroup", &["memory", "usage"]));
    set(offset::CGROUP_PSI, info.pointer("cgroup", &["psi"]));
    set(offset::PSI_TOTAL, info.offset("psi_group", &["total"]));
    set(offset::TASK_CGROUPS, info.pointer("task_struct", &["cgroups"]));
    set(offset::CSS_SET_DFL, info.pointer("css_set", &["dfl_cgrp"]));
    set(offset::CGROUP_ANCESTORS, info.offset("cgroup", &["ancestors"]));
    set(offset::TASK_LAST_QUEUED, info.offset("task_struct", &["sched_info", "last_queued"]));
    set(offset::TASK_CFS_RQ, info.pointer("task_struct", &["se", "cfs_rq"]));
    set(offset::CFS_RQ_RQ, info.pointer("cfs_rq", &["rq"]));
    set(offset::RQ_CLOCK, info.offset("rq", &["clock"]));
    set(offset::TASK_TGID, info.offset("task_struct", &["tgid"]));
    table
}

/// Reads bytes as a kernel's type information, as at start; for fuzzing.
pub(super) fn try_bytes(file: &[u8]) {
    let Some(info) = TypeInfo::parse(file) else { return };
    let _ = (offsets(&info), info.tracepoint_takes_pointer("mark_victim", 0));
    if let Some(skeleton) = info.skeleton(&ATTACHED_TO) {
        let kept = TypeInfo::parse(&skeleton).expect("what was written can be read");
        assert!(kept.starts.len() <= info.starts.len(), "numbers stay what they were");
        for (kind, name) in ATTACHED_TO {
            assert_eq!(kept.find(kind, name).is_some(), info.find(kind, name).is_some(), "{name}");
        }
    }
}

/// Names of what is missing in a table, for the log.
pub(super) fn missing<'n>(table: &[u32; OFFSETS], wanted: &[(usize, &'n str)]) -> Vec<&'n str> {
    let absent: HashSet<usize> =
        (0..OFFSETS).filter(|index| table.get(*index) == Some(&offset::ABSENT)).collect();
    wanted.iter().filter(|(index, _)| absent.contains(index)).map(|(_, name)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with `struct outer { u32 a; struct { u64 inner; struct named *to; }; }` and `enum e { X = 7 }`.
    fn sample() -> Vec<u8> {
        let strings = b"\0outer\0a\0inner\0to\0e\0X\0int\0named\0";
        let text = |name: &[u8]| -> u32 {
            let with_nul: Vec<u8> = [b"\0", name, b"\0"].concat();
            let at = strings.windows(with_nul.len()).position(|part| part == with_nul.as_slice());
            u32::try_from(at.expect("a name of the table") + 1).expect("short")
        };
        let kind = |kind: u32, len: u32| kind << 24 | len;
        let words: Vec<u32> = [
            vec![text(b"int"), kind(1, 0), 8, 64],         // 1: int
            vec![text(b"named"), kind(KIND_STRUCT, 0), 0], // 2: struct named
            vec![0, kind(KIND_PTR, 0), 2],                 // 3: its pointer
            vec![0, kind(KIND_STRUCT, 2), 16, text(b"inner"), 1, 0, text(b"to"), 3, 64], // 4: anonymous
            vec![text(b"outer"), kind(KIND_STRUCT, 2), 24, text(b"a"), 1, 0, 0, 4, 64], // 5: struct outer
            vec![text(b"e"), kind(KIND_ENUM, 1), 4, text(b"X"), 7], // 6: enum e
        ]
        .concat();
        let types: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).expect("short").to_ne_bytes();
        let mut file = Vec::new();
        file.extend(MAGIC.to_ne_bytes());
        file.extend([1, 0]);
        file.extend(24u32.to_ne_bytes());
        file.extend(0u32.to_ne_bytes());
        file.extend(length(&types));
        file.extend(length(&types));
        file.extend(length(strings));
        file.extend(&types);
        file.extend(strings);
        file
    }

    #[test]
    fn fields_are_found_through_anonymous_members() {
        let file = sample();
        let info = TypeInfo::parse(&file).expect("a good file");
        assert_eq!(info.offset("outer", &["a"]), Some(0));
        assert_eq!(info.offset("outer", &["inner"]), Some(8));
        assert_eq!(info.pointer("outer", &["to"]), Some(16));
        assert_eq!(info.pointer("outer", &["inner"]), None);
        assert_eq!(info.offset("outer", &["nothing"]), None);
        assert_eq!(info.offset("nothing", &["a"]), None);
        assert_eq!(info.enumerator("e", "X"), Some(7));
        assert_eq!(info.enumerator("e", "Y"), None);
        assert!(offsets(&info).iter().all(|at| *at == offset::ABSENT));
    }

    #[test]
    fn a_skeleton_keeps_numbers_and_wanted_names() {
        let file = sample();
        let info = TypeInfo::parse(&file).expect("a good file");
        let skeleton = info.skeleton(&[(KIND_STRUCT, "outer")]).expect("a small one");
        let kept = TypeInfo::parse(&skeleton).expect("a good file");
        assert_eq!(kept.starts.len(), 1 + 5, "the enumeration after it is left out");
        let outer = kept.number(5).expect("as many types");
        assert_eq!((kept.name(outer.name), outer.kind), (b"outer".as_slice(), KIND_STRUCT));
        assert!(kept.find(KIND_ENUM, "e").is_none());
    }

    #[test]
    fn damage_gives_absent_fields_not_a_panic() {
        let file = sample();
        for end in 0..file.len() {
            if let Some(info) = TypeInfo::parse(&file[..end]) {
                let _ = offsets(&info);
            }
        }
        for at in 0..file.len() {
            let mut damaged = file.clone();
            damaged[at] ^= 0xff;
            if let Some(info) = TypeInfo::parse(&damaged) {
                let _ = (info.offset("outer", &["inner"]), info.enumerator("e", "X"), offsets(&info));
            }
        }
    }

    #[test]
    fn the_running_kernel_has_what_the_programs_need() {
        let Ok(file) = std::fs::read("/sys/kernel/btf/vmlinux") else {
            println!("skipped: this kernel has no type information");
            return;
        };
        let info = TypeInfo::parse(&file).expect("the kernel's own file is well formed");
        let table = offsets(&info);
        // `kn` is a pointer somewhere in the first kilobytes of a structure of a few.
        assert!(table[offset::CGROUP_KN] < 16_384, "{table:?}");
        assert!(table[offset::KN_ID] < 4096, "{table:?}");
        assert!(info.tracepoint_takes_pointer("sched_switch", 1));
        assert!(!info.tracepoint_takes_pointer("sched_switch", 0), "that one is a bool");
        assert!(!info.tracepoint_takes_pointer("swarmguard_is_not_in_the_kernel", 0));
    }
}
