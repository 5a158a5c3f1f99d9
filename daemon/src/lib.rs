//! The device daemon; see the modules.
