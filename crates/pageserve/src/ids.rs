//! Names of tenants, shards and timelines as they appear in commands (spec page-service.md, conventions).

use std::fmt;
use std::str::FromStr;

/// The text is not an id of the expected form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid {kind} {text:?}")]
pub struct IdParseError {
    kind: &'static str,
    text: String,
}

fn parse_hex16(text: &str, kind: &'static str) -> Result<[u8; 16], IdParseError> {
    let fail = || IdParseError { kind, text: text.to_string() };
    if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(fail());
    }
    let number = u128::from_str_radix(text, 16).map_err(|_| fail())?;
    Ok(number.to_be_bytes())
}

macro_rules! id16 {
    ($name:ident, $kind:literal) => {
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 16]);

        impl FromStr for $name {
            type Err = IdParseError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                parse_hex16(text, $kind).map($name)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", u128::from_be_bytes(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

id16!(TenantId, "tenant id");
id16!(TimelineId, "timeline id");

/// Which shard of how many. Count 0 means unsharded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardIndex {
    pub number: u8,
    pub count: u8,
}

impl ShardIndex {
    pub const UNSHARDED: ShardIndex = ShardIndex { number: 0, count: 0 };
}

/// One shard of one tenant: 32 hex characters if unsharded, otherwise `<tenant>-NNCC`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantShardId {
    pub tenant: TenantId,
    pub shard: ShardIndex,
}

impl FromStr for TenantShardId {
    type Err = IdParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = || IdParseError { kind: "tenant shard id", text: text.to_string() };
        let (tenant, shard) = match text.split_once('-') {
            None => (text, ShardIndex::UNSHARDED),
            Some((tenant, rest)) => {
                if rest.len() != 4 || !rest.bytes().all(|b| b.is_ascii_hexdigit()) {
                    return Err(fail());
                }
                let [number, count] = u16::from_str_radix(rest, 16).map_err(|_| fail())?.to_be_bytes();
                (tenant, ShardIndex { number, count })
            }
        };
        Ok(TenantShardId { tenant: tenant.parse().map_err(|_| fail())?, shard })
    }
}

impl fmt::Display for TenantShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.tenant)?;
        if self.shard.count != 0 {
            write!(f, "-{:02x}{:02x}", self.shard.number, self.shard.count)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_tenant_shard_id_survive_a_round_trip() {
        for text in ["3d1f7595b468230304e0b73cecbcb081", "3d1f7595b468230304e0b73cecbcb081-0208"] {
            assert_eq!(text.parse::<TenantShardId>().unwrap().to_string(), text);
        }
        let upper: TenantId = "3D1F7595B468230304E0B73CECBCB081".parse().unwrap();
        assert_eq!(upper.to_string(), "3d1f7595b468230304e0b73cecbcb081");
        for bad in [
            "",
            "3d1f",
            "3d1f7595b468230304e0b73cecbcb081-",
            "3d1f7595b468230304e0b73cecbcb081-020",
            "+d1f7595b468230304e0b73cecbcb081",
        ] {
            assert!(bad.parse::<TenantShardId>().is_err(), "{bad}");
        }
    }
}
