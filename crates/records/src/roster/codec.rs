//! The bytes of roster entries; see the table above the parent module.

use super::{
    Change, DecodeError, DeviceId, EntryId, KeyEpoch, LogPosition, Member, NAME_SEALED_LEN_MAX,
    PublicKeys, ROSTER_ENTRY_LEN_MAX, Reader, Record, RecoveryKeys, Role, RosterEntry,
    SECRET_SEALED_LEN_MAX, VERSION, WRAP_LEN_MAX, WRAPS_MAX, WallMillis, Wrap, Write, version,
};

impl Record for RosterEntry {
    const NAME: &'static str = "roster entry";
    const LEN_MAX: usize = ROSTER_ENTRY_LEN_MAX;

    fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.put_u8(VERSION);
        bytes.put_u64(self.seq);
        bytes.extend_from_slice(self.previous.as_bytes());
        bytes.extend_from_slice(self.signer.as_bytes());
        bytes.put_i64(self.time.0);
        self.change.encode(bytes);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        version(reader, VERSION)?;
        Ok(Self {
            seq: reader.u64()?,
            previous: EntryId::from_bytes(reader.array()?),
            signer: DeviceId::from_bytes(reader.array()?),
            time: WallMillis(reader.i64()?),
            change: Change::decode(reader)?,
        })
    }
}

impl Change {
    fn encode(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Genesis {
                member,
                recovery,
                secret_commitment,
                wraps,
            } => {
                bytes.put_u8(1);
                member.encode(bytes);
                recovery.encode(bytes);
                bytes.extend_from_slice(secret_commitment);
                encode_wraps(wraps, bytes);
            }
            Self::Add {
                member,
                possession,
                key_epoch,
                secret_commitment,
                wrap,
            } => {
                bytes.put_u8(2);
                member.encode(bytes);
                bytes.extend_from_slice(possession);
                bytes.put_u32(key_epoch.0);
                bytes.extend_from_slice(secret_commitment);
                wrap.encode(bytes);
            }
            Self::Revoke {
                device,
                at,
                key_epoch,
                secret_commitment,
                sealed_previous,
                wraps,
            } => {
                bytes.put_u8(3);
                bytes.extend_from_slice(device.as_bytes());
                bytes.put_u64(at.0);
                bytes.put_u32(key_epoch.0);
                bytes.extend_from_slice(secret_commitment);
                bytes.put_bytes(sealed_previous);
                encode_wraps(wraps, bytes);
            }
            Self::Recover {
                member,
                possession,
                recovery,
                key_epoch,
                secret_commitment,
                sealed_previous,
                wraps,
            } => {
                bytes.put_u8(4);
                member.encode(bytes);
                bytes.extend_from_slice(possession);
                recovery.encode(bytes);
                bytes.put_u32(key_epoch.0);
                bytes.extend_from_slice(secret_commitment);
                bytes.put_bytes(sealed_previous);
                encode_wraps(wraps, bytes);
            }
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match reader.u8()? {
            1 => Ok(Self::Genesis {
                member: Member::decode(reader)?,
                recovery: RecoveryKeys::decode(reader)?,
                secret_commitment: reader.array()?,
                wraps: decode_wraps(reader)?,
            }),
            2 => Ok(Self::Add {
                member: Member::decode(reader)?,
                possession: reader.array()?,
                key_epoch: KeyEpoch(reader.u32()?),
                secret_commitment: reader.array()?,
                wrap: Wrap::decode(reader)?,
            }),
            3 => Ok(Self::Revoke {
                device: DeviceId::from_bytes(reader.array()?),
                at: LogPosition(reader.u64()?),
                key_epoch: KeyEpoch(reader.u32()?),
                secret_commitment: reader.array()?,
                sealed_previous: reader.bytes(SECRET_SEALED_LEN_MAX)?.to_vec(),
                wraps: decode_wraps(reader)?,
            }),
            4 => Ok(Self::Recover {
                member: Member::decode(reader)?,
                possession: reader.array()?,
                recovery: RecoveryKeys::decode(reader)?,
                key_epoch: KeyEpoch(reader.u32()?),
                secret_commitment: reader.array()?,
                sealed_previous: reader.bytes(SECRET_SEALED_LEN_MAX)?.to_vec(),
                wraps: decode_wraps(reader)?,
            }),
            _ => Err(DecodeError("unknown change of the roster")),
        }
    }
}

impl Member {
    fn encode(&self, bytes: &mut Vec<u8>) {
        self.keys.encode(bytes);
        bytes.put_u8(match self.role {
            Role::Admin => 1,
            Role::Member => 2,
        });
        bytes.put_bytes(&self.sealed_name);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            keys: PublicKeys::decode(reader)?,
            role: match reader.u8()? {
                1 => Role::Admin,
                2 => Role::Member,
                _ => return Err(DecodeError("unknown role")),
            },
            sealed_name: reader.bytes(NAME_SEALED_LEN_MAX)?.to_vec(),
        })
    }
}

impl RecoveryKeys {
    fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.sign);
        bytes.extend_from_slice(&self.kem);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            sign: reader.array()?,
            kem: reader.array()?,
        })
    }
}

impl Wrap {
    fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.receiver);
        bytes.put_bytes(&self.bytes);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            receiver: reader.array()?,
            bytes: reader.bytes(WRAP_LEN_MAX)?.to_vec(),
        })
    }
}

fn encode_wraps(wraps: &[Wrap], bytes: &mut Vec<u8>) {
    // A roster that is too large is refused by its length long before the count wraps around.
    bytes.put_u16(u16::try_from(wraps.len()).unwrap_or(u16::MAX));
    for wrap in wraps {
        wrap.encode(bytes);
    }
}

fn decode_wraps(reader: &mut Reader<'_>) -> Result<Vec<Wrap>, DecodeError> {
    let count = usize::from(reader.u16()?);
    if count > WRAPS_MAX {
        return Err(DecodeError("more wraps than a roster has devices"));
    }
    (0..count).map(|_| Wrap::decode(reader)).collect()
}
