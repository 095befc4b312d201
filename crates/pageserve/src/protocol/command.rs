//! The commands of the libpq endpoint (spec page-service.md 1.5).

use pagecore::Lsn;

use super::pagestream::Version;
use crate::error::QueryError;
use crate::ids::{TenantId, TenantShardId, TimelineId};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    PageStream {
        version: Version,
        tenant: TenantId,
        timeline: TimelineId,
    },
    BaseBackup {
        tenant: TenantId,
        timeline: TimelineId,
        lsn: Option<Lsn>,
        gzip: bool,
        replica: bool,
    },
    FullBackup {
        tenant: TenantId,
        timeline: TimelineId,
        lsn: Option<Lsn>,
        prev_lsn: Option<Lsn>,
    },
    LeaseLsn {
        tenant_shard: TenantShardId,
        timeline: TimelineId,
        lsn: Lsn,
    },
    /// Drivers send `SET datestyle …` on connect; nothing is set.
    Set,
}

fn other(text: String) -> QueryError {
    QueryError::Other(text)
}

fn parse<T: std::str::FromStr>(text: &str) -> Result<T, QueryError>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|error: T::Err| other(error.to_string()))
}

fn parse_lsn(text: &str) -> Result<Lsn, QueryError> {
    text.parse().map_err(|_| other(format!("invalid lsn {text:?}")))
}

impl Command {
    pub fn parse(text: &[u8]) -> Result<Command, QueryError> {
        let text = std::str::from_utf8(text).map_err(|_| other("query is not valid UTF-8".to_string()))?.trim();
        let Some((keyword, rest)) = text.split_once(' ') else {
            return Err(other(format!("cannot parse query: {text}")));
        };
        let words: Vec<&str> = rest.split_whitespace().collect();
        match keyword.to_ascii_lowercase().as_str() {
            "pagestream_v2" => Command::page_stream(Version::V2, keyword, &words),
            "pagestream_v3" => Command::page_stream(Version::V3, keyword, &words),
            "basebackup" => Command::base_backup(&words),
            "fullbackup" => Command::full_backup(&words),
            "lease" => Command::lease(&words),
            "set" => Ok(Command::Set),
            _ => Err(other(format!("unsupported command {keyword} in {text}"))),
        }
    }

    fn page_stream(version: Version, keyword: &str, words: &[&str]) -> Result<Command, QueryError> {
        match words {
            [tenant, timeline] => {
                Ok(Command::PageStream { version, tenant: parse(tenant)?, timeline: parse(timeline)? })
            }
            _ => Err(other(format!("invalid number of parameters for {keyword} command: {}", words.len()))),
        }
    }

    fn base_backup(words: &[&str]) -> Result<Command, QueryError> {
        let [tenant, timeline, rest @ ..] = words else {
            return Err(other(format!("invalid number of parameters for basebackup command: {}", words.len())));
        };
        let (tenant, timeline) = (parse(tenant)?, parse(timeline)?);
        let (lsn, flags) = match rest {
            ["latest", flags @ ..] => (None, flags),
            [word, flags @ ..] if !word.starts_with("--") => (Some(parse_lsn(word)?), flags),
            flags => (None, flags),
        };
        let (mut gzip, mut replica) = (false, false);
        for flag in flags {
            let seen = match *flag {
                "--gzip" => &mut gzip,
                "--replica" => &mut replica,
                _ => return Err(other(format!("invalid parameter for basebackup command: {flag}"))),
            };
            if std::mem::replace(seen, true) {
                return Err(other(format!("duplicate parameter for basebackup command: {flag}")));
            }
        }
        Ok(Command::BaseBackup { tenant, timeline, lsn, gzip, replica })
    }

    fn full_backup(words: &[&str]) -> Result<Command, QueryError> {
        let (tenant, timeline, lsns) = match words {
            [tenant, timeline, lsns @ ..] if lsns.len() <= 2 => (tenant, timeline, lsns),
            _ => return Err(other(format!("invalid number of parameters for fullbackup command: {}", words.len()))),
        };
        let lsn_at = |i: usize| lsns.get(i).map(|word| parse_lsn(word)).transpose();
        Ok(Command::FullBackup {
            tenant: parse(tenant)?,
            timeline: parse(timeline)?,
            lsn: lsn_at(0)?,
            prev_lsn: lsn_at(1)?,
        })
    }

    fn lease(words: &[&str]) -> Result<Command, QueryError> {
        match words {
            [kind, rest @ ..] if kind.eq_ignore_ascii_case("lsn") => match rest {
                [tenant_shard, timeline, lsn] => Ok(Command::LeaseLsn {
                    tenant_shard: parse(tenant_shard)?,
                    timeline: parse(timeline)?,
                    lsn: parse_lsn(lsn)?,
                }),
                _ => Err(other(format!("invalid number of parameters for lease lsn command: {}", rest.len()))),
            },
            _ => Err(other("invalid lease command: lease".to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: &str = "3d1f7595b468230304e0b73cecbcb081";
    const TL: &str = "8cbe8ed3cd4d3b0ee9e7a0e1b0ac1d2c";

    fn parsed(text: &str) -> Result<Command, String> {
        let text = text.replace(" TL", &format!(" {TL}")).replace(" T ", &format!(" {T} "));
        Command::parse(text.as_bytes()).map_err(|error| error.simple_text())
    }

    fn backup(text: &str) -> (Option<u64>, bool, bool) {
        match parsed(text) {
            Ok(Command::BaseBackup { lsn, gzip, replica, .. }) => (lsn.map(|lsn| lsn.0), gzip, replica),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn basebackup_takes_an_lsn_then_flags_in_any_order() {
        assert_eq!(backup("basebackup T TL"), (None, false, false));
        assert_eq!(backup("  BaseBackup T TL latest "), (None, false, false));
        assert_eq!(backup("basebackup T TL 0/16ABCDE"), (Some(0x16ABCDE), false, false));
        assert_eq!(backup("basebackup T TL --replica --gzip"), (None, true, true));
        assert_eq!(backup("basebackup T TL 0/16ABCDE --replica --gzip"), (Some(0x16ABCDE), true, true));
        assert_eq!(backup("basebackup T TL latest --gzip"), (None, true, false));
        assert_eq!(
            parsed("basebackup T TL --gzip --gzip"),
            Err("duplicate parameter for basebackup command: --gzip".to_string())
        );
        assert_eq!(
            parsed("basebackup T TL --gzip --unknown"),
            Err("invalid parameter for basebackup command: --unknown".to_string())
        );
        assert_eq!(
            parsed("basebackup T TL --gzip 0/16ABCDE"),
            Err("invalid parameter for basebackup command: 0/16ABCDE".to_string())
        );
        assert!(parsed("basebackup T TL --lsn 0/16ABCDE").is_err());
        assert!(parsed("basebackup T TL;").is_err());
    }

    #[test]
    fn keywords_ignore_case_and_unknown_ones_are_named() {
        assert_eq!(parsed("SET datestyle TO 'ISO'"), Ok(Command::Set));
        assert!(matches!(parsed("PAGESTREAM_V3 T TL"), Ok(Command::PageStream { version: Version::V3, .. })));
        assert!(Command::parse(format!("pagestream_v2\t{T} {TL}").as_bytes()).is_err());
        assert!(matches!(parsed("pagestream_v2 T  \t  TL"), Ok(Command::PageStream { version: Version::V2, .. })));
        assert_eq!(parsed(""), Err("cannot parse query: ".to_string()));
        assert_eq!(parsed("set"), Err("cannot parse query: set".to_string()));
        assert_eq!(parsed("pagestream a b"), Err("unsupported command pagestream in pagestream a b".to_string()));
        assert_eq!(parsed("show all"), Err("unsupported command show in show all".to_string()));
        assert!(parsed("pagestream_v3 T TL more").is_err());
        assert!(Command::parse(b"set \xff").is_err());
    }

    #[test]
    fn lease_and_fullbackup_take_their_arguments_by_position() {
        let lease = parsed(&format!("lease LSN {T}-0208 TL 0/2002018")).unwrap();
        let Command::LeaseLsn { tenant_shard, lsn, .. } = lease else { panic!() };
        assert_eq!((tenant_shard.shard.number, tenant_shard.shard.count, lsn.0), (2, 8, 0x2002018));
        assert!(matches!(parsed("lease lsn T TL 0/10"), Ok(Command::LeaseLsn { .. })));
        assert_eq!(parsed("lease page T TL 0/10"), Err("invalid lease command: lease".to_string()));
        assert!(matches!(parsed("fullbackup T TL"), Ok(Command::FullBackup { lsn: None, prev_lsn: None, .. })));
        assert!(matches!(
            parsed("fullbackup T TL 0/20 0/10"),
            Ok(Command::FullBackup { lsn: Some(Lsn(0x20)), prev_lsn: Some(Lsn(0x10)), .. })
        ));
        assert!(parsed("fullbackup T TL 0/20 0/10 0/5").is_err());
    }
}
