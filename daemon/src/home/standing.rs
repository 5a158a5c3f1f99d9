//! The rule by which a home that went back in time is noticed from its replies.

use img_proto::Standing;

/// Whether a reply shows a home that is behind or unlike what was seen before its call was sent.
///
/// Within one database the log only grows, and a position has one root for ever. Another database is judged by
/// Hello alone, which asks for the root at the position seen.
pub(super) fn went_back(before: &Standing, at: &Standing) -> bool {
    before.incarnation == at.incarnation
        && (at.position < before.position
            || (at.position == before.position && at.root != before.root))
}

/// Whether the home's own account of the position that this device had seen agrees with it. It is asked at
/// every Hello, so that a database that was exchanged or forked shows even where it has grown beyond.
pub(super) fn confirms(at_seen: Option<&Standing>, seen: &Standing) -> bool {
    at_seen.is_some_and(|at| at.position == seen.position && at.root == seen.root)
}

#[cfg(test)]
mod tests {
    use super::*;
    use img_types::{Incarnation, LogPosition, LogRoot};

    fn at(incarnation: u8, position: u64, root: u8) -> Standing {
        Standing {
            incarnation: Incarnation::from_bytes([incarnation; 32]),
            position: LogPosition(position),
            root: LogRoot::from_bytes([root; 32]),
        }
    }

    #[test]
    fn a_home_confirms_what_was_seen_whatever_its_database() {
        assert!(confirms(Some(&at(2, 5, 1)), &at(1, 5, 1)));
        assert!(!confirms(Some(&at(1, 5, 2)), &at(1, 5, 1)));
        assert!(!confirms(Some(&at(1, 4, 1)), &at(1, 5, 1)));
        assert!(!confirms(None, &at(1, 5, 1)));
    }

    #[test]
    fn a_log_only_grows() {
        assert!(!went_back(&at(1, 5, 1), &at(1, 5, 1)));
        assert!(!went_back(&at(1, 5, 1), &at(1, 6, 2)));
        assert!(went_back(&at(1, 5, 1), &at(1, 4, 9)));
        assert!(went_back(&at(1, 5, 1), &at(1, 5, 2)));
        assert!(!went_back(&at(1, 5, 1), &at(2, 3, 2)));
    }
}
