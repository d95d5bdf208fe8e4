//! `without_ipv6 program …`: runs a program that can make no IPv6 sockets, as on a kernel without
//! IPv6 or under systemd's `RestrictAddressFamilies`.

use std::collections::BTreeMap;
use std::env;
use std::error::Error;
use std::os::unix::process::CommandExt;
use std::process::Command;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter,
};

fn main() -> Result<(), Box<dyn Error>> {
    let family = libc::AF_INET6 as u64;
    let is_ipv6 = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, family)?;
    let rules = BTreeMap::from([(libc::SYS_socket, vec![SeccompRule::new(vec![is_ipv6])?])]);
    let refuse = SeccompAction::Errno(libc::EAFNOSUPPORT as u32);
    let arch = env::consts::ARCH.try_into()?;
    let filter: BpfProgram =
        SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch)?.try_into()?;
    apply_filter(&filter)?;
    let mut words = env::args_os().skip(1);
    let program = words.next().ok_or("without_ipv6 program …")?;
    Err(Command::new(program).args(words).exec().into())
}
