//! Plays in which the home is the victim.
