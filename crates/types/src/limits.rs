//! Every limit of formats, protocol and queues, with its reason.

use std::time::Duration;

/// Longest name of an image or device, in characters: fits a terminal line and a file name.
pub const NAME_LEN_MAX: usize = 100;
/// Longest name of a directory entry in bytes, as in Linux.
pub const ENTRY_NAME_LEN_MAX: usize = 255;

/// Bytes of one file that a block covers: small enough for a fault in a fraction of a round trip,
/// large enough that references stay below 0.2 % of the data.
pub const BLOCK_SIZE: usize = 64 * 1024;
/// Contents, extended attributes and symlinks up to this size live in the index itself: an object
/// of its own would cost a round trip and 256 bytes at least.
pub const INLINE_LEN_MAX: usize = 2 * 1024;
/// Largest value of an index entry: a leaf of 64 KiB holds at least eight.
pub const INDEX_VALUE_LEN_MAX: usize = 8 * 1024;
/// Longest key of an index entry: the fixed part, a name's hash and the longest name.
pub const INDEX_KEY_LEN_MAX: usize = 10 + 8 + ENTRY_NAME_LEN_MAX + 8;
/// Largest canonical size of an index node.
pub const NODE_LEN_MAX: usize = 64 * 1024;
/// Most entries or children of one index node: bounds the clear header to 32 KB.
pub const NODE_CHILDREN_MAX: usize = 1_000;
/// Highest level of an index node: 8 levels of at least 100 children address 10^16 entries.
pub const NODE_LEVEL_MAX: u8 = 8;
/// Canonical size that a metadata leaf aims at: a listing needs few objects.
pub const METADATA_LEAF_TARGET: usize = 32 * 1024;
/// Canonical size that every other node aims at: a small edit rewrites little.
pub const NODE_TARGET: usize = 8 * 1024;
/// Patches of one extent from which merging them into a block is wanted.
pub const PATCHES_WANTED_MAX: usize = 4;
/// Patches of one extent that the format allows.
pub const PATCHES_MAX: usize = 64;
/// Largest raw content of a patch object.
pub const PATCH_LEN_MAX: usize = 1024 * 1024;
/// Most objects a trace lists: about a gigabyte of touched blocks.
pub const TRACE_LEN_MAX: usize = 16_384;

/// Largest stored object, header and tag included.
pub const OBJECT_LEN_MAX: usize = 4 * 1024 * 1024;
/// Shortest sealed content before the tag; hides what is smaller.
pub const PADDED_LEN_MIN: usize = 256;

/// Largest control frame on the wire.
pub const FRAME_LEN_MAX: usize = 64 * 1024;
/// Most that a stranger may send before it is on the roster.
pub const JOIN_FRAME_LEN_MAX: usize = 4 * 1024;
/// Largest commit record, signature included.
pub const COMMIT_LEN_MAX: usize = 64 * 1024;
/// Largest roster entry, wraps and signatures included: 200 devices' wraps fit.
pub const ROSTER_ENTRY_LEN_MAX: usize = 48 * 1024;
/// Longest commit message in bytes.
pub const MESSAGE_LEN_MAX: usize = 4 * 1024;
/// Largest sealed field of a record.
pub const SEALED_FIELD_LEN_MAX: usize = 32 * 1024;
/// Most devices on a roster, so that an entry with a wrap for each fits its limit.
pub const DEVICES_MAX: usize = 200;

/// Object ids in one request for objects, and in one question for missing ones: 32 KB of ids.
pub const IDS_PER_REQUEST_MAX: usize = 1_024;
/// Records in one answer that lists.
pub const RECORDS_PER_REPLY_MAX: usize = 256;
/// Checkouts that may have something staged upon one image: with records of the largest kind, an image
/// still fits one reply.
pub const STAGED_PER_IMAGE_MAX: usize = 32;
/// Bytes after which the home syncs its spool and acknowledges an upload.
pub const UPLOAD_SYNC_BYTES: u64 = 8 * 1024 * 1024;
/// Time after which the home syncs its spool and acknowledges an upload.
pub const UPLOAD_SYNC_INTERVAL: Duration = Duration::from_millis(200);
/// Size at which a spool becomes a pack.
pub const SPOOL_LEN_MAX: u64 = 64 * 1024 * 1024;
/// Calls that share one database transaction.
pub const GROUP_CALLS_MAX: usize = 256;
/// An upload session without a finished object ends after this time.
pub const UPLOAD_IDLE_MAX: Duration = Duration::from_secs(24 * 3600);

/// Connections of one device at a time.
pub const CONNECTIONS_PER_DEVICE_MAX: usize = 4;
/// Bidirectional streams of one connection at a time.
pub const STREAMS_PER_CONNECTION_MAX: u32 = 64;
/// Connections of machines that are not on the roster.
pub const JOIN_CONNECTIONS_MAX: usize = 64;
/// Connections from one address of machines that are not on the roster: a household joins at once, and
/// nobody alone takes all places.
pub const JOIN_CONNECTIONS_PER_ADDRESS_MAX: usize = 16;
/// Time that a machine that is not on the roster may stay connected; one that waits under a registered
/// invite may stay this long without a request.
pub const JOIN_LIFE_MAX: Duration = Duration::from_secs(10);
/// Handshakes under way at the home.
pub const INCOMING_MAX: usize = 256;
/// Bytes that a peer may send before we read them, per connection.
pub const RECEIVE_WINDOW: u64 = 16 * 1024 * 1024;
/// Bytes that a peer may send on one stream before we read them.
pub const STREAM_RECEIVE_WINDOW: u64 = 4 * 1024 * 1024;
/// A connection without a packet for this time is dead.
pub const CONNECTION_IDLE_MAX: Duration = Duration::from_secs(60);
/// A device that is otherwise silent sends a packet this often.
pub const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// How long a demand fetch may wait for the home before the reader gets an error.
pub const DEMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// Default time of an online lease: a tablet that sleeps through lunch keeps it.
pub const LEASE_TTL_DEFAULT: Duration = Duration::from_secs(3 * 3600);
/// Shortest lease: three renewals and their round trips fit.
pub const LEASE_TTL_MIN: Duration = Duration::from_secs(10);
/// Longest online lease.
pub const LEASE_ONLINE_TTL_MAX: Duration = Duration::from_secs(24 * 3600);
/// Shortest offline lease: what is shorter is an online one.
pub const LEASE_OFFLINE_TTL_MIN: Duration = Duration::from_secs(24 * 3600);
/// Longest offline lease.
pub const LEASE_OFFLINE_TTL_MAX: Duration = Duration::from_secs(180 * 24 * 3600);
/// How long staged records, deleted images and pins stay, in the home's own running time.
pub const KEPT_AFTER_LOSS: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long a request's outcome is kept.
pub const REQUEST_KEPT: Duration = Duration::from_secs(200 * 24 * 3600);
/// How often remaining times are persisted.
pub const REMAINING_PERSIST_INTERVAL: Duration = Duration::from_secs(60);
/// How long an invite can be used.
pub const INVITE_TTL: Duration = Duration::from_secs(15 * 60);

/// Edits of one generation, in bytes, at which it closes by itself.
pub const GENERATION_EDITS_MAX: u64 = 64 * 1024 * 1024;
/// Dirty bytes of one generation at which it closes by itself.
pub const GENERATION_DIRTY_MAX: u64 = 4 * 1024 * 1024 * 1024;
/// Closed generations that may wait for their seal; beyond, the top grows on.
pub const GENERATIONS_UNSEALED_MAX: usize = 2;
/// Default size of a device's cache of objects.
pub const CACHE_LEN_DEFAULT: u64 = 20 * 1024 * 1024 * 1024;
/// Free space below which the home takes no more uploads, and a device no more writes: commits and
/// seals of what was accepted still fit.
pub const DISK_RESERVE: u64 = 256 * 1024 * 1024;
/// Free space that a device's cache leaves when it takes what can be fetched again: the reserve, and as much again
/// for writes that must not wait for an eviction.
pub const CACHE_FREE_MIN: u64 = 2 * DISK_RESERVE;
