//! What the kernel is to forget because the tree was set to another root.

use fuser::INodeNo;
use img_index::Inode;

use super::Mounted;

/// Inodes and names of which the kernel may know something that is not so any more.
///
/// It is made before anything changes, and in memory: nothing that it needs can be absent afterwards. It grows with
/// what differs between the two roots, by some 100 bytes for each path.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Forget {
    /// Their attributes, contents, lists of entries and access lists.
    pub inodes: Vec<Inode>,
    /// Names in directories: what they lead to, and that they lead nowhere.
    pub entries: Vec<(Inode, Box<[u8]>)>,
}

impl Mounted {
    /// Has the kernel forget what has changed by another way than the mount; blocks. Never call it from a thread that
    /// answers requests: pages that programs are reading are waited for, and names that are being looked up.
    pub fn forget(&self, forget: &Forget) {
        // An answer of before that arrives after would be believed.
        self.gate.wait_for_those_inside();
        for inode in &forget.inodes {
            // From the first byte to the last.
            if let Err(error) = self.notifier.inval_inode(INodeNo(inode.0), 0, 0) {
                tracing::debug!(%error, "the kernel had forgotten an inode");
            }
        }
        for (parent, name) in &forget.entries {
            self.forget_entry(*parent, name);
        }
    }
}
