//! Places for machines that are not on the roster: few in all, and fewer for one address.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use img_types::limits::{JOIN_CONNECTIONS_MAX, JOIN_CONNECTIONS_PER_ADDRESS_MAX};

/// How many strangers are connected, by address.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    by_address: Mutex<BTreeMap<IpAddr, usize>>,
}

/// One stranger's place, free again when it is dropped.
#[derive(Debug)]
pub(super) struct StrangersPlace {
    strangers: Arc<Strangers>,
    address: IpAddr,
}

impl Strangers {
    /// Gives a place, if there is one in all and for this address.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<StrangersPlace> {
        let address = network(address);
        let mut counts = self
            .by_address
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let all: usize = counts.values().sum();
        let own = counts.get(&address).copied().unwrap_or(0);
        if all >= JOIN_CONNECTIONS_MAX || own >= JOIN_CONNECTIONS_PER_ADDRESS_MAX {
            return None;
        }
        counts.insert(address, own + 1);
        Some(StrangersPlace {
            strangers: Arc::clone(self),
            address,
        })
    }
}

impl Drop for StrangersPlace {
    fn drop(&mut self) {
        let mut counts = self
            .strangers
            .by_address
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let left = counts.get(&self.address).copied().unwrap_or(0);
        match left.checked_sub(1) {
            None | Some(0) => counts.remove(&self.address),
            Some(left) => counts.insert(self.address, left),
        };
    }
}

/// What counts as one address: of IPv6 the first half, because whoever has one has 2^64 of them.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let bits = address.to_bits() >> 64 << 64;
            IpAddr::V6(Ipv6Addr::from_bits(bits))
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(strangers: &Arc<Strangers>, address: &str) -> Vec<StrangersPlace> {
        let address = address.parse().unwrap();
        std::iter::from_fn(|| strangers.enter(address)).collect()
    }

    #[test]
    fn one_address_cannot_take_all_places() {
        let strangers = Arc::new(Strangers::default());
        let places = fill(&strangers, "192.0.2.1");
        assert_eq!(places.len(), JOIN_CONNECTIONS_PER_ADDRESS_MAX);
        // The same address, as a socket for both families shows it.
        assert!(fill(&strangers, "::ffff:192.0.2.1").is_empty());
        let other = fill(&strangers, "192.0.2.2");
        assert_eq!(other.len(), JOIN_CONNECTIONS_PER_ADDRESS_MAX);
        drop(places);
        let again = fill(&strangers, "192.0.2.1");
        assert_eq!(again.len(), JOIN_CONNECTIONS_PER_ADDRESS_MAX);
    }

    #[test]
    fn all_addresses_together_have_a_limit_and_a_v6_network_is_one_address() {
        let strangers = Arc::new(Strangers::default());
        let mut places = fill(&strangers, "2001:db8:0:1::1");
        assert!(fill(&strangers, "2001:db8:0:1:ffff::2").is_empty());
        for network in 2..100 {
            places.extend(fill(&strangers, &format!("2001:db8:0:{network}::1")));
        }
        assert_eq!(places.len(), JOIN_CONNECTIONS_MAX);
        drop(places);
        assert!(strangers.by_address.lock().unwrap().is_empty());
    }
}
