//! As much of nf_tables as dropping packets takes, over a netlink socket: tables that the kernel removes with their owner.
//!
//! By hand and not through a library: it is five kinds of messages, the libraries at hand link against C code, and none of
//! them sets the owner flag, which is what makes a drill safe.

use std::{io, net::IpAddr, os::fd::OwnedFd, time::Duration};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, sockopt};

/// Longest wait for the kernel's answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Before all others, so that nothing lets pass what is to be dropped.
const PRIORITY: i32 = -400;

// linux/netlink.h, linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h
const NLMSG_ERROR: u16 = 2;
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
const NEW_TABLE: u16 = 0;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const TABLE_OWNER: u32 = 0x2;
const NESTED: u16 = 0x8000;
const NETWORK_HEADER: u32 = 1;
const REGISTER: u32 = 1;
const VERDICT: u32 = 0;
const DROP: u32 = 0;
const ACCEPT: u32 = 1;
const EQUAL: u32 = 0;
const LESS: u32 = 2;
const RANDOM: u32 = 1;
const HOST_TO_NETWORK: u32 = 1;

/// Which version of the Internet protocol a table is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// 4.
    V4,
    /// 6.
    V6,
}

impl Family {
    fn number(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }
}

/// Where packets are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// To this node.
    In,
    /// Through it.
    Forward,
    /// From it.
    Out,
}

impl Hook {
    fn number(self) -> u32 {
        match self {
            Self::In => 1,
            Self::Forward => 2,
            Self::Out => 3,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Forward => "forward",
            Self::Out => "out",
        }
    }
}

/// Tables that exist as long as this does.
#[derive(Debug)]
pub struct Owned(
    #[expect(dead_code, reason = "held: the kernel removes the tables when it is closed")] OwnedFd,
);

/// Messages that take effect together or not at all.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    sent: u32,
}

impl Batch {
    /// A table that belongs to the socket that sends this.
    pub fn table(&mut self, family: Family, name: &str) {
        let mut attributes = Attributes::default();
        attributes.text(1, name);
        attributes.number(2, TABLE_OWNER);
        self.message(NEW_TABLE, CREATE, family, &attributes);
    }

    /// A chain of the table at a hook; what it does not drop goes on.
    pub fn chain(&mut self, family: Family, table: &str, hook: Hook) {
        let mut at = Attributes::default();
        at.number(1, hook.number());
        at.number(2, u32::from_ne_bytes(PRIORITY.to_ne_bytes()));
        let mut attributes = Attributes::default();
        attributes.text(1, table);
        attributes.text(3, hook.name());
        attributes.nested(4, &at);
        attributes.number(5, ACCEPT);
        attributes.text(7, "filter");
        self.message(NEW_CHAIN, CREATE, family, &attributes);
    }

    /// Drops so many of a hundred packets from (`source`) or to an address.
    pub fn drop_rule(
        &mut self,
        family: Family,
        table: &str,
        hook: Hook,
        peer: IpAddr,
        source: bool,
        percent: u8,
    ) {
        let (bytes, offset) = match (peer, source) {
            (IpAddr::V4(peer), true) => (peer.octets().to_vec(), 12),
            (IpAddr::V4(peer), false) => (peer.octets().to_vec(), 16),
            (IpAddr::V6(peer), true) => (peer.octets().to_vec(), 8),
            (IpAddr::V6(peer), false) => (peer.octets().to_vec(), 24),
        };
        let mut rule = Attributes::default();
        rule.expression("payload", |data| {
            data.number(1, REGISTER);
            data.number(2, NETWORK_HEADER);
            data.number(3, offset);
            data.number(4, if family == Family::V4 { 4 } else { 16 });
        });
        rule.expression("cmp", |data| data.comparison(EQUAL, &bytes));
        if percent < 100 {
            rule.expression("numgen", |data| {
                data.number(1, REGISTER);
                data.number(2, 100);
                data.number(3, RANDOM);
            });
            // Numbers are made as this machine has them and compared as bytes from the highest.
            rule.expression("byteorder", |data| {
                data.number(1, REGISTER);
                data.number(2, REGISTER);
                data.number(3, HOST_TO_NETWORK);
                data.number(4, 4);
                data.number(5, 4);
            });
            rule.expression("cmp", |data| data.comparison(LESS, &u32::from(percent).to_be_bytes()));
        }
        rule.expression("immediate", |data| {
            let (mut verdict, mut value) = (Attributes::default(), Attributes::default());
            verdict.number(1, DROP);
            value.nested(2, &verdict);
            data.number(1, VERDICT);
            data.nested(2, &value);
        });
        let mut attributes = Attributes::default();
        attributes.text(1, table);
        attributes.text(2, hook.name());
        attributes.nested(4, &rule);
        self.message(NEW_RULE, CREATE | APPEND, family, &attributes);
    }

    fn message(&mut self, kind: u16, flags: u16, family: Family, attributes: &Attributes) {
        self.sent += 1;
        let kind = SUBSYSTEM << 8 | kind;
        put(&mut self.bytes, kind, REQUEST | ACK | flags, self.sent, family.number(), 0, &attributes.0);
    }

    /// Sends all of it; the tables are there when this returns.
    ///
    /// # Errors
    /// The kernel's; nothing is there then.
    pub fn commit(self) -> io::Result<Owned> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            Some(netlink::NETFILTER),
        )?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE))?;
        let mut bytes = Vec::with_capacity(self.bytes.len() + 40);
        put(&mut bytes, BATCH_BEGIN, REQUEST, 0, 0, SUBSYSTEM, &[]);
        bytes.extend_from_slice(&self.bytes);
        put(&mut bytes, BATCH_END, REQUEST, self.sent + 1, 0, SUBSYSTEM, &[]);
        rustix::net::send(&socket, &bytes, SendFlags::empty())?;
        let mut acknowledged = 0;
        let mut buffer = vec![0; 16 * 1024];
        while acknowledged < self.sent {
            let (length, _) = rustix::net::recv(&socket, &mut buffer[..], RecvFlags::empty())?;
            for error in errors(&buffer[..length]) {
                if error != 0 {
                    return Err(io::Error::from_raw_os_error(-error));
                }
                acknowledged += 1;
            }
        }
        Ok(Owned(socket))
    }
}

/// A message with its heads.
fn put(bytes: &mut Vec<u8>, kind: u16, flags: u16, number: u32, family: u8, resource: u16, rest: &[u8]) {
    let length = u32::try_from(20 + rest.len()).unwrap_or(u32::MAX);
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&number.to_ne_bytes());
    bytes.extend_from_slice(&0_u32.to_ne_bytes());
    bytes.extend_from_slice(&[family, 0]);
    bytes.extend_from_slice(&resource.to_be_bytes());
    bytes.extend_from_slice(rest);
}

/// What each answer in a datagram says: 0 or an error number below it.
fn errors(mut datagram: &[u8]) -> Vec<i32> {
    let mut found = Vec::new();
    while let (Some(length), Some(kind)) = (datagram.first_chunk::<4>(), datagram.get(4..6)) {
        let length = usize::try_from(u32::from_ne_bytes(*length)).unwrap_or(usize::MAX);
        if u16::from_ne_bytes([kind[0], kind[1]]) == NLMSG_ERROR
            && let Some(code) = datagram.get(16..20)
        {
            found.push(i32::from_ne_bytes([code[0], code[1], code[2], code[3]]));
        }
        match datagram.get(length.max(16).next_multiple_of(4)..) {
            Some(rest) => datagram = rest,
            None => break,
        }
    }
    found
}

/// Attributes of a message, each padded to four bytes.
#[derive(Clone, Debug, Default)]
struct Attributes(Vec<u8>);

impl Attributes {
    fn put(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn text(&mut self, kind: u16, text: &str) {
        self.put(kind, &[text.as_bytes(), &[0]].concat());
    }

    fn number(&mut self, kind: u16, number: u32) {
        self.put(kind, &number.to_be_bytes());
    }

    fn nested(&mut self, kind: u16, inner: &Self) {
        self.put(kind | NESTED, &inner.0);
    }

    fn expression(&mut self, name: &str, fill: impl FnOnce(&mut Self)) {
        let (mut whole, mut data) = (Self::default(), Self::default());
        fill(&mut data);
        whole.text(1, name);
        whole.nested(2, &data);
        self.nested(1, &whole);
    }

    fn comparison(&mut self, how: u32, with: &[u8]) {
        let mut value = Self::default();
        value.put(1, with);
        self.number(1, REGISTER);
        self.number(2, how);
        self.nested(3, &value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_say_their_own_length() {
        let mut attributes = Attributes::default();
        attributes.text(1, "ab");
        attributes.number(2, 7);
        assert_eq!(attributes.0.len(), 16);
        assert_eq!((&attributes.0[..4], &attributes.0[4..8]), (&[7, 0, 1, 0][..], &b"ab\0\0"[..]));
        assert_eq!(&attributes.0[8..], &[8, 0, 2, 0, 0, 0, 0, 7]);
    }

    #[test]
    fn answers_are_read_one_by_one_and_what_is_cut_is_no_answer() {
        let answer = |code: i32| {
            let mut bytes = Vec::new();
            put(&mut bytes, NLMSG_ERROR, 0, 1, 0, 0, &[0; 16]);
            bytes[16..20].copy_from_slice(&code.to_ne_bytes());
            bytes
        };
        let both = [answer(0), answer(-17)].concat();
        assert_eq!(errors(&both), [0, -17]);
        assert_eq!(errors(&both[..50]), [0]);
        assert_eq!(errors(&[]), Vec::<i32>::new());
    }
}
