//! The engine against a dictionary of all versions.

use super::*;

/// The dictionary that the engine must agree with: key to versions by LSN.
#[derive(Clone, Default)]
struct Model {
    versions: Map<Key, Map<u64, Option<Vec<u8>>>>,
}

impl Model {
    fn get(&self, key: &Key, lsn: u64) -> Option<Vec<u8>> {
        self.versions.get(key)?.range(..=lsn).next_back()?.1.clone()
    }
}

struct World {
    _dir: TempDir,
    store: Arc<TimelineStore>,
    model: Model,
    last: u64,
    /// LSN of the newest image layer over everything, so that keys absent from it are not expected below it again.
    next_generation: u32,
}

fn key_for(n: u64) -> Key {
    match n % 4 {
        0 => Key { field1: 0x65, field6: n as u32, ..Key::MIN },
        1 => Key::slru_block(SlruKind::Clog, 0, n as u32),
        _ => block(n as u32),
    }
}

/// Puts, freezes, flushes, branches, image layers and reads at random, compared with the dictionary.
fn run_model(seed: u64) {
    let mut random = Random(seed);
    let caches = Arc::new(Caches::new(64 * BLCKSZ, 64 * BLCKSZ, 2 << 20));
    let dir = TempDir::new();
    let config = crate::TimelineConfig { caches: Arc::clone(&caches), ..store_config(&dir, 0x100) };
    let store = TimelineStore::new(config).unwrap();
    let mut worlds = vec![World { _dir: dir, store, model: Model::default(), last: 0x100, next_generation: 1 }];
    for _ in 0..400 {
        let which = random.below(worlds.len() as u64) as usize;
        let count = worlds.len();
        let world = &mut worlds[which];
        match random.below(20) {
            0..=9 => {
                let mut batch = WriteBatch::default();
                let mut lsns = Vec::new();
                for _ in 0..1 + random.below(10) {
                    world.last += 8 * (1 + random.below(4));
                    lsns.push(Lsn(world.last));
                    let n = random.below(24);
                    let key = key_for(n);
                    let old = world.model.get(&key, world.last).filter(|_| key.field1 == 1);
                    let over = old.filter(|_| random.below(4) > 0);
                    let value = if let Some(mut page) = over {
                        // A record over whatever is there.
                        let slot = random.below(32) as u32;
                        let xid = key.field6 * 32768 + slot;
                        let value = commit_record(xid);
                        batch.push(key, Lsn(world.last), &value.encode(), false);
                        page.truncate(BLCKSZ);
                        let (at, shift) = (slot as usize / 4, slot % 4 * 2);
                        page[at] = page[at] & !(3 << shift) | 1 << shift;
                        page.extend_from_slice(&i64::from(xid).to_be_bytes());
                        page
                    } else {
                        let fill = random.below(256) as u8;
                        let image = if key.is_sparse() { vec![fill; 1 + n as usize] } else { page(fill) };
                        batch.push_image(key, Lsn(world.last), &image);
                        image
                    };
                    world.model.versions.entry(key).or_default().insert(world.last, Some(value));
                }
                world.store.commit(&batch, &lsns).unwrap();
            }
            10 | 11 => {
                world.store.freeze().unwrap();
            }
            12 | 13 => {
                if let Some(written) = world.store.flush_oldest(Some(world.next_generation)).unwrap() {
                    world.next_generation += 1;
                    assert_eq!(written.name.lsns.end.0 - 1, world.store.disk_consistent_lsn().0);
                }
            }
            14 => {
                let lsn = world.last;
                let keys: Vec<_> = (0..24).map(key_for).filter(|k| !k.is_sparse()).collect();
                let mut dense: Vec<Range<Key>> =
                    keys.iter().filter(|k| world.model.get(k, lsn).is_some()).map(|k| *k..k.next()).collect();
                dense.sort_by_key(|r| r.start);
                let plan = ImageLayerPlan {
                    keys: Key::MIN..Key::MAX,
                    lsn: Lsn(lsn),
                    generation: Some(world.next_generation),
                    compression: if random.below(2) == 0 { Compression::Disabled } else { Compression::default() },
                };
                world.next_generation += 1;
                let exists =
                    world.store.map().historic.layers().any(|l| l.name().lsns.start.0 == lsn && !l.name().is_delta());
                if !exists {
                    let sparse = [Key::SPARSE_START..Key::SPARSE_END];
                    world.store.create_image_layer(&plan, &dense, &sparse).unwrap();
                }
            }
            15 if count < 4 => {
                let parent = &worlds[which];
                let at = 0x100 + random.below(parent.last - 0x100 + 1) / 8 * 8;
                let dir = TempDir::new();
                let store = TimelineStore::new(crate::TimelineConfig {
                    caches: Arc::clone(&caches),
                    ancestor: Some(Arc::clone(&parent.store)),
                    ancestor_lsn: Lsn(at),
                    ..store_config(&dir, at)
                })
                .unwrap();
                let mut model = parent.model.clone();
                model.versions.values_mut().for_each(|v| {
                    v.split_off(&(at + 1));
                });
                worlds.push(World { _dir: dir, store, model, last: at, next_generation: 1 });
            }
            _ => {
                let lsn = 0x100 + random.below(world.last - 0x100 + 1);
                let keys: Vec<_> = (0..24).map(key_for).filter(|k| !k.is_sparse()).map(|k| (k, Lsn(lsn))).collect();
                for ((key, _), got) in keys.iter().zip(world.store.get_vectored(&keys)) {
                    match world.model.get(key, lsn) {
                        Some(want) => assert!(got.unwrap() == want, "seed {seed}: {key} at {lsn:x}"),
                        None => assert!(
                            matches!(got, Err(StoreError::MissingKey { .. })),
                            "seed {seed}: {key} at {lsn:x} must not exist"
                        ),
                    }
                }
                let scanned = world.store.scan(Key::SPARSE_START..Key::SPARSE_END, Lsn(lsn)).unwrap();
                let mut want: Vec<_> = (0..24)
                    .map(key_for)
                    .filter(|k| k.is_sparse())
                    .filter_map(|k| Some((k, Bytes::from(world.model.get(&k, lsn)?))))
                    .collect();
                want.sort();
                assert_eq!(scanned, want, "seed {seed} at {lsn:x}");
            }
        }
    }
}

#[test]
fn the_engine_agrees_with_a_dictionary() {
    for seed in 1..=12 {
        run_model(seed);
    }
}
