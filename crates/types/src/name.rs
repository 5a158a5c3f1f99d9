//! Names that people give, parsed once.

use std::fmt;

use crate::limits::NAME_LEN_MAX;

/// Says why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a name has 1 to 100 characters out of letters, digits, '-', '_' and '.', and does not start with '-' or '.'"
)]
pub struct NameError;

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// Takes a text that follows the rule.
            ///
            /// # Errors
            /// [`NameError`] where it does not.
            pub fn parse(text: &str) -> Result<Self, NameError> {
                check(text).map(|()| Self(text.to_owned()))
            }

            /// The name's text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// The name of an image, unique among the live images of a home.
    ImageName
);
name!(
    /// The name of a device, as its owner calls it.
    DeviceName
);

fn check(text: &str) -> Result<(), NameError> {
    let allowed = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    let len = text.chars().count();
    let fits = (1..=NAME_LEN_MAX).contains(&len);
    if fits && text.chars().all(allowed) && !text.starts_with(['-', '.']) {
        Ok(())
    } else {
        Err(NameError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_the_rule_and_nothing_else() {
        for good in ["a", "blender-session", "vm_1.2", "größe", &"x".repeat(100)] {
            assert!(ImageName::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", ".a", "a/b", "a b", "a\0b", "..", &"x".repeat(101)] {
            assert!(ImageName::parse(bad).is_err(), "{bad}");
        }
    }
}
