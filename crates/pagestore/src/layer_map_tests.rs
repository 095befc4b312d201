use std::time::Instant;

use super::*;
use crate::layer_file::Caches;
use crate::testing::Random;
use crate::values::ValueMemory;

fn files(names: impl IntoIterator<Item = LayerName>) -> Vec<Arc<LayerFile>> {
    let caches = Arc::new(Caches::new(0, 0, 0));
    let file = |name: LayerName| {
        Arc::new(LayerFile::new(name.clone(), name.to_string().into(), 24576, [0; 16], Arc::clone(&caches), None))
    };
    names.into_iter().map(file).collect()
}

fn memory(start: u64, end: Option<u64>) -> Arc<InMemoryLayer> {
    let layer = InMemoryLayer::new(Lsn(start), "none".into(), Instant::now(), Arc::new(ValueMemory::new(0)));
    if let Some(end) = end {
        layer.freeze(Lsn(end)).unwrap();
    }
    Arc::new(layer)
}

fn delta(start: u64, end: u64) -> LayerName {
    LayerName::l0(Lsn(start)..Lsn(end))
}

fn image(lsn: u64) -> LayerName {
    LayerName::image(Key::MIN..Key::MAX, Lsn(lsn))
}

/// All steps of a search, as text: kind and floor.
fn walk(map: &LayerMap, below: u64) -> Vec<(char, u64)> {
    let mut out = Vec::new();
    let mut below = Lsn(below);
    while let Some(step) = map.search(&Key::CHECKPOINT, below) {
        let kind = match &step.layer {
            Layer::Memory(_) => 'M',
            layer if layer.is_image() => 'I',
            Layer::File(_) => 'D',
        };
        out.push((kind, step.floor.0));
        below = step.floor;
    }
    out
}

#[test]
fn the_vectors_of_the_choice() {
    let map = |names: Vec<LayerName>, frozen: Vec<Arc<InMemoryLayer>>| {
        let map = LayerMap::default().with_files(files(names), &[]).unwrap();
        LayerMap { frozen, ..map }
    };
    assert_eq!(walk(&map(vec![delta(10, 20), image(15)], vec![]), 100), [('D', 16), ('I', 15), ('D', 10)]);
    assert_eq!(walk(&map(vec![delta(10, 20), image(25)], vec![]), 30), [('I', 25), ('D', 10)]);
    assert_eq!(walk(&map(vec![image(15)], vec![memory(10, Some(25))]), 30), [('M', 16), ('I', 15), ('M', 10)]);
    assert_eq!(
        walk(&map(vec![delta(15, 25), image(20)], vec![memory(10, Some(30))]), 50)[..3],
        [('M', 25), ('D', 21), ('I', 20)]
    );
    assert_eq!(walk(&map(vec![delta(10, 40), image(25)], vec![memory(20, Some(30))]), 50)[..2], [('D', 26), ('I', 25)]);
    assert_eq!(walk(&map(vec![], vec![]), 50), []);
}

#[test]
fn the_open_layer_comes_before_frozen_ones() {
    let map = LayerMap {
        open: Some(memory(30, None)),
        frozen: vec![memory(10, Some(20)), memory(20, Some(30))],
        ..LayerMap::default()
    };
    assert_eq!(walk(&map, 100), [('M', 30), ('M', 20), ('M', 10)]);
    assert_eq!(walk(&map, 30), [('M', 20), ('M', 10)]);
    assert_eq!(walk(&map, 11), [('M', 10)]);
    assert_eq!(walk(&map, 10), []);
}

/// The definition, without an index.
fn slow_latest(layers: &[Arc<LayerFile>], key: &Key, at: Lsn, is_delta: bool) -> Option<u64> {
    let mut best: Option<&Arc<LayerFile>> = None;
    for layer in layers {
        let name = layer.name();
        if name.is_delta() == is_delta && name.keys.contains(key) && name.lsns.start <= at {
            let better = best.is_none_or(|b| {
                let order = |n: &LayerName| (n.lsns.start, n.lsns.end, n.keys.start, n.keys.end);
                name.lsns.end > b.name().lsns.end
                    || (name.lsns.end == b.name().lsns.end && order(name) < order(b.name()))
            });
            if better {
                best = Some(layer);
            }
        }
    }
    best.map(|l| l.id())
}

#[test]
fn the_index_agrees_with_the_definition() {
    let mut random = Random(42);
    for _ in 0..50 {
        let mut names = std::collections::BTreeSet::new();
        for _ in 0..60 {
            let a = random.below(40) as u32;
            let b = a + 1 + random.below(20) as u32;
            let keys = Key { field6: a, ..Key::MIN }..Key { field6: b, ..Key::MIN };
            let lsn = random.below(50);
            names.insert(match random.below(3) {
                0 => LayerName::image(keys, Lsn(lsn)),
                1 => LayerName::delta(keys, Lsn(lsn)..Lsn(lsn + 1 + random.below(20))),
                _ => delta(lsn, lsn + 1 + random.below(20)),
            });
        }
        let layers = files(names);
        let map = LayerMap::default().with_files(layers.clone(), &[]).unwrap();
        for _ in 0..400 {
            let key = Key { field6: random.below(70) as u32, ..Key::MIN };
            let at = Lsn(random.below(80));
            let (d, i) = map.historic.latest(&key, at);
            assert_eq!(d.map(|l| l.id()), slow_latest(&layers, &key, at, true));
            assert_eq!(i.map(|l| l.id()), slow_latest(&layers, &key, at, false));
        }
        // Pieces of a range agree with single keys.
        let range = Key::MIN..Key { field6: 70, ..Key::MIN };
        let pieces = map.search_range(&range, Lsn(60));
        for block in 0..70 {
            let key = Key { field6: block, ..Key::MIN };
            let single = map.search(&key, Lsn(60)).map(|s| (s.layer.id(), s.floor));
            let piece = pieces.iter().find(|(keys, _)| keys.contains(&key)).map(|(_, s)| (s.layer.id(), s.floor));
            assert_eq!(single, piece, "block {block}");
        }
    }
}

#[test]
fn a_real_map_of_many_layers_is_searched_quickly() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/vectors/layer-maps/odd-brook-layernames.txt");
    let Ok(text) = std::fs::read_to_string(path) else {
        eprintln!("skipped: {path} is not there");
        return;
    };
    let names: std::collections::BTreeSet<_> = text.lines().map(|l| LayerName::parse(l).unwrap()).collect();
    for (line, name) in text.lines().zip(&names).take(10) {
        assert_eq!(LayerName::parse(line).unwrap().to_string(), line);
        assert!(name.keys.start < name.keys.end);
    }
    let layers = files(names);
    let started = Instant::now();
    let map = LayerMap::default().with_files(layers.clone(), &[]).unwrap();
    map.search(&Key::MIN, Lsn(1));
    let build = started.elapsed();
    let mut random = Random(7);
    let mut steps = 0;
    let queries: Vec<_> = (0..20_000)
        .map(|_| {
            let a = layers[random.below(layers.len() as u64) as usize].name();
            let b = layers[random.below(layers.len() as u64) as usize].name();
            (a.keys.start, b.lsns.end)
        })
        .collect();
    let started = Instant::now();
    for (key, below) in &queries {
        let mut below = *below;
        while let Some(step) = map.search(key, below) {
            assert!(step.floor < below);
            below = step.floor;
            steps += 1;
            if step.layer.is_image() {
                break;
            }
        }
    }
    let search = started.elapsed();
    for (key, below) in queries.iter().step_by(200) {
        let at = Lsn(below.0 - 1);
        let (d, i) = map.historic.latest(key, at);
        assert_eq!(d.map(|l| l.id()), slow_latest(&layers, key, at, true));
        assert_eq!(i.map(|l| l.id()), slow_latest(&layers, key, at, false));
    }
    eprintln!("{} layers: built in {build:?}, {steps} steps in {search:?}", layers.len());
}

#[test]
fn names_come_and_go_once() {
    let map = LayerMap::default().with_files(files([delta(10, 20)]), &[]).unwrap();
    assert_eq!((map.historic.len(), map.historic.l0_count()), (1, 1));
    assert!(map.with_files(files([delta(10, 20)]), &[]).is_err());
    assert!(map.with_files(files([]), &[delta(10, 30)]).is_err());
    let swapped = map.with_files(files([image(20)]), &[delta(10, 20)]).unwrap();
    assert_eq!(walk(&swapped, 100), [('I', 20)]);
    assert_eq!(walk(&map, 100), [('D', 10)]);
}
