//! Pairs of requests, the second made from the first by edits that keep or change its meaning. Whether their keys are
//! equal is compared with what a second, plain notion of equality says, and that with what the edits were meant to do.

use super::{Scope, key};
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use turnpike_config::{Endpoint, OrgId};
use uuid::Uuid;

/// Pairs that are tried unless `TURNPIKE_CACHE_PAIRS` says otherwise.
const DEFAULT_PAIRS: u64 = 200_000;

/// SplitMix64: good enough to choose edits, and quick.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(bound).unwrap()).unwrap()
    }

    fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// JSON whose numbers and literals are text.
#[derive(Clone, Debug, PartialEq)]
enum Json {
    Word(String),
    Text(String),
    Array(Vec<Json>),
    Object(Vec<(String, Json)>),
}

use Json::{Array, Object, Text, Word};

/// What the key is made of, as the proxy knows it.
#[derive(Clone, Debug, PartialEq)]
struct Request {
    organization: u8,
    organization_generation: u32,
    public: bool,
    model: &'static str,
    version: &'static str,
    model_generation: u32,
    endpoint: Endpoint,
    body: Json,
}

/// Members of the body without a meaning, listed again so that a slip in the key's own list is noticed.
const IGNORED: [&str; 8] =
    ["user", "stream", "stream_options", "metadata", "store", "safety_identifier", "prompt_cache_key", "model"];

const NAMES: [&str; 9] = ["user", "metadata", "stream", "model", "store", "x", "ключ", "a\"b", "stream_options"];
const TEXTS: [&str; 10] = ["", "hi", "Hi", "hi ", "1", "null", "a\\n", "a\n", "Größe 😀", "\u{1}\u{7f}/"];
const NUMBERS: [&str; 14] = [
    "0",
    "-0",
    "0.0",
    "1",
    "1.0",
    "1e0",
    "1E0",
    "10",
    "0.7",
    "0.70",
    "9007199254740992",
    "9007199254740993",
    "18446744073709551616",
    "18446744073709551617",
];
const WORDS: [&str; 3] = ["null", "true", "false"];

fn random_json(dice: &mut Dice, depth: usize) -> Json {
    match dice.below(if depth == 0 { 3 } else { 5 }) {
        0 => Word(dice.pick(&NUMBERS).to_owned()),
        1 => Word(dice.pick(&WORDS).to_owned()),
        2 => Text(dice.pick(&TEXTS).to_owned()),
        3 => Array((0..dice.below(4)).map(|_| random_json(dice, depth - 1)).collect()),
        _ => random_object(dice, depth - 1),
    }
}

fn random_object(dice: &mut Dice, depth: usize) -> Json {
    let mut members = Vec::new();
    for _ in 0..dice.below(4) {
        let value = random_json(dice, depth);
        put(&mut members, dice.pick(&NAMES), value);
    }
    Object(members)
}

/// Sets a member; true if that changed anything.
fn put(members: &mut Vec<(String, Json)>, name: &str, value: Json) -> bool {
    match members.iter_mut().find(|(n, _)| n == name) {
        Some((_, old)) if *old == value => return false,
        Some((_, old)) => *old = value,
        None => members.push((name.to_owned(), value)),
    }
    true
}

fn object(members: &[(&str, Json)]) -> Json {
    Object(members.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect())
}

fn text(text: &str) -> Json {
    Text(text.to_owned())
}

fn word(word: &str) -> Json {
    Word(word.to_owned())
}

fn random_message(dice: &mut Dice) -> Json {
    let mut message = object(&[("role", text(dice.pick(&["system", "user", "assistant"])))]);
    let Object(members) = &mut message else { unreachable!() };
    let content = match dice.below(4) {
        0 => Array(vec![object(&[("type", text("text")), ("text", text(dice.pick(&TEXTS)))])]),
        1 => word("null"),
        _ => text(dice.pick(&TEXTS)),
    };
    put(members, "content", content);
    if dice.one_in(3) {
        put(members, dice.pick(&["user", "metadata", "name"]), text("inner"));
    }
    message
}

fn random_body(dice: &mut Dice) -> Json {
    let messages = (0..=dice.below(3)).map(|_| random_message(dice)).collect();
    let mut members = vec![("model".to_owned(), text("m")), ("messages".to_owned(), Array(messages))];
    for name in ["temperature", "seed", "max_tokens", "n", "top_p"] {
        if dice.one_in(2) {
            put(&mut members, name, word(dice.pick(&NUMBERS)));
        }
    }
    for name in ["stop", "response_format", "logit_bias", "service_tier"].into_iter().chain(IGNORED) {
        if dice.one_in(5) {
            let value = random_json(dice, 2);
            put(&mut members, name, value);
        }
    }
    if dice.one_in(3) {
        let function = object(&[("name", text("f")), ("parameters", random_object(dice, 3))]);
        put(&mut members, "tools", Array(vec![object(&[("type", text("function")), ("function", function)])]));
    }
    Object(members)
}

fn random_request(dice: &mut Dice) -> Request {
    Request {
        organization: dice.pick(&[1, 2]),
        organization_generation: dice.pick(&[0, 1]),
        public: dice.one_in(3),
        model: dice.pick(&["m", "m1"]),
        version: dice.pick(&["1", "11"]),
        model_generation: dice.pick(&[0, 1]),
        endpoint: dice.pick(&Endpoint::ALL),
        body: random_body(dice),
    }
}

/// Changes what is not part of the meaning. Order, white space and escapes change whenever JSON is written.
fn edit_keeping(request: &mut Request, dice: &mut Dice) {
    if request.public && dice.one_in(3) {
        request.organization = request.organization.wrapping_add(1);
        request.organization_generation += 1;
        return;
    }
    let Object(members) = &mut request.body else { unreachable!() };
    let name = dice.pick(&IGNORED);
    if dice.one_in(2) {
        members.retain(|(n, _)| n != name);
    } else {
        let value = random_json(dice, 3);
        put(members, name, value);
    }
}

/// Changes the meaning; false if the edit found nothing to change.
fn edit_changing(request: &mut Request, dice: &mut Dice) -> bool {
    match dice.below(13) {
        0 if !request.public => request.organization = request.organization.wrapping_add(1),
        1 if !request.public => request.organization_generation += 1,
        2 => request.model_generation += 1,
        3 => request.model = if request.model == "m" { "m1" } else { "m" },
        4 => request.version = if request.version == "1" { "11" } else { "1" },
        5 => request.endpoint = Endpoint::ALL[(request.endpoint.index() + 1) % 4],
        6 => request.public = !request.public,
        // The same letters, cut elsewhere.
        7 if (request.model, request.version) == ("m", "11") => (request.model, request.version) = ("m1", "1"),
        8 => return edit_parameter(&mut request.body, dice),
        _ => return edit_somewhere(&mut request.body, dice),
    }
    true
}

fn edit_parameter(body: &mut Json, dice: &mut Dice) -> bool {
    let Object(members) = body else { unreachable!() };
    let name = dice.pick(&["temperature", "seed", "max_tokens", "n", "top_p", "stop", "service_tier", "tools", "x"]);
    let before = members.len();
    if dice.one_in(3) {
        members.retain(|(n, _)| n != name);
        return members.len() < before;
    }
    let value = random_json(dice, 1);
    put(members, name, value)
}

/// Every value that has a meaning, the body itself first.
fn places<'a>(json: &'a mut Json, chosen: &mut usize, ignored: &[&str]) -> Option<&'a mut Json> {
    if *chosen == 0 {
        return Some(json);
    }
    *chosen -= 1;
    match json {
        Array(items) => items.iter_mut().find_map(|item| places(item, chosen, &[])),
        Object(members) => {
            let meant = members.iter_mut().filter(|(name, _)| !ignored.contains(&name.as_str()));
            meant.map(|(_, value)| value).find_map(|value| places(value, chosen, &[]))
        }
        Word(_) | Text(_) => None,
    }
}

fn edit_somewhere(body: &mut Json, dice: &mut Dice) -> bool {
    let mut chosen = 1 + dice.below(24);
    let Some(place) = places(body, &mut chosen, &IGNORED) else { return false };
    let before = place.clone();
    match place {
        Word(word) => edit_word(word, dice),
        Text(text) => text.push(dice.pick(&[' ', 'a', '\\', '"', '😀'])),
        Array(items) => edit_array(items, dice),
        Object(members) => edit_object(members, dice),
    }
    if dice.one_in(6) {
        *place = match &before {
            Word(word) => Text(word.clone()),
            Text(text) if NUMBERS.contains(&text.as_str()) => Word(text.clone()),
            other => Array(vec![other.clone()]),
        };
    }
    !same_json(&before, place)
}

fn edit_word(word: &mut String, dice: &mut Dice) {
    let choice = if dice.one_in(4) { &WORDS[..] } else { &NUMBERS[..] };
    *word = dice.pick(choice).to_owned();
}

fn edit_array(items: &mut Vec<Json>, dice: &mut Dice) {
    let inner = items.iter().position(|item| matches!(item, Array(_)));
    match (dice.below(4), inner) {
        (0, _) if items.len() > 1 => {
            let first = dice.below(items.len());
            items.swap(first, 0);
        }
        (1, _) => drop(items.pop()),
        // [[1],2] to [[1,2]].
        (2, Some(inner)) if inner + 1 < items.len() => {
            let moved = items.remove(inner + 1);
            if let Array(items) = &mut items[inner] {
                items.push(moved);
            }
        }
        _ => items.push(random_json(dice, 1)),
    }
}

fn edit_object(members: &mut Vec<(String, Json)>, dice: &mut Dice) {
    match dice.below(5) {
        0 if !members.is_empty() => drop(members.swap_remove(dice.below(members.len()))),
        1 => drop(put(members, "new", word("null"))),
        2 if !members.is_empty() => {
            let index = dice.below(members.len());
            members[index].0.push('_');
        }
        // {"a":{},"b":1} to {"a":{"b":1}}.
        3 if members.len() > 1 => {
            let (name, moved) = members.swap_remove(dice.below(members.len()));
            let inner =
                members.iter_mut().find_map(|(_, value)| if let Object(inner) = value { Some(inner) } else { None });
            put(inner.unwrap_or(&mut Vec::new()), &name, moved);
        }
        _ => {
            let value = random_json(dice, 1);
            put(members, dice.pick(&NAMES), value);
        }
    }
}

/// Equality of what edits work on, members in any order.
fn same_json(a: &Json, b: &Json) -> bool {
    match (a, b) {
        (Object(a), Object(b)) => {
            let found = |(name, value): &(String, Json)| b.iter().any(|(n, v)| n == name && same_json(v, value));
            a.len() == b.len() && a.iter().all(found)
        }
        (Array(a), Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same_json(a, b)),
        (a, b) => a == b,
    }
}

/// Writes JSON with members, white space and escapes as the dice fall.
fn write(json: &Json, dice: &mut Dice, out: &mut String) {
    match json {
        Word(word) => out.push_str(word),
        Text(text) => write_text(text, dice, out),
        Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                out.push_str(if i > 0 { "," } else { "" });
                write_blank(dice, out);
                write(item, dice, out);
            }
            write_blank(dice, out);
            out.push(']');
        }
        Object(members) => {
            let mut order: Vec<_> = members.iter().collect();
            for i in (1..order.len()).rev() {
                order.swap(i, dice.below(i + 1));
            }
            out.push('{');
            for (i, (name, value)) in order.into_iter().enumerate() {
                out.push_str(if i > 0 { "," } else { "" });
                write_blank(dice, out);
                write_text(name, dice, out);
                out.push_str(dice.pick(&[":", " :", ": "]));
                write(value, dice, out);
            }
            write_blank(dice, out);
            out.push('}');
        }
    }
}

fn write_blank(dice: &mut Dice, out: &mut String) {
    out.push_str(dice.pick(&["", "", "", " ", "\n", "\t", "\r\n  "]));
}

fn write_text(text: &str, dice: &mut Dice, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' if !dice.one_in(4) => out.extend(['\\', c]),
            '/' if dice.one_in(3) => out.push_str("\\/"),
            '\n' if dice.one_in(2) => out.push_str("\\n"),
            c if c < ' ' || matches!(c, '"' | '\\') || dice.one_in(16) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let hex = format!("\\u{unit:04x}");
                    out.push_str(&if dice.one_in(2) { hex.to_uppercase().replace('U', "u") } else { hex });
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// The reference: compares two texts side by side, level by level, as their owners would.
fn same_text(a: &RawValue, b: &RawValue, ignored: &[&str]) -> bool {
    fn read<'a, T: serde::Deserialize<'a>>(raw: &'a RawValue) -> Option<T> {
        serde_json::from_str(raw.get()).ok()
    }
    type Members<'a> = BTreeMap<String, &'a RawValue>;
    if let (Some(mut a), Some(mut b)) = (read::<Members<'_>>(a), read::<Members<'_>>(b)) {
        a.retain(|name, _| !ignored.contains(&name.as_str()));
        b.retain(|name, _| !ignored.contains(&name.as_str()));
        return a.keys().eq(b.keys()) && a.values().zip(b.values()).all(|(a, b)| same_text(a, b, &[]));
    }
    if let (Some(a), Some(b)) = (read::<Vec<&RawValue>>(a), read::<Vec<&RawValue>>(b)) {
        return a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| same_text(a, b, &[]));
    }
    match (read::<String>(a), read::<String>(b)) {
        (None, None) => a.get() == b.get(),
        (a, b) => a == b,
    }
}

fn same_scope(a: &Request, b: &Request) -> bool {
    let organizations = match (a.public, b.public) {
        (true, true) => true,
        (false, false) => a.organization == b.organization && a.organization_generation == b.organization_generation,
        _ => false,
    };
    organizations
        && a.model == b.model
        && a.version == b.version
        && a.model_generation == b.model_generation
        && a.endpoint == b.endpoint
}

/// What may differ between two requests of one meaning is left out of neither.
fn scope(request: &Request) -> Scope<'_> {
    let organization = OrgId(Uuid::from_u128(u128::from(request.organization)));
    Scope {
        organization: (!request.public).then_some((organization, request.organization_generation)),
        model: request.model,
        version: request.version,
        model_generation: request.model_generation,
        endpoint: request.endpoint,
    }
}

#[derive(Debug, Default)]
struct Counts {
    pairs: u64,
    same: u64,
    wrong: u64,
    lies: u64,
    mislabelled: u64,
}

fn try_pair(dice: &mut Dice, counts: &mut Counts) {
    let first = random_request(dice);
    let mut second = first.clone();
    for _ in 0..dice.below(3) {
        edit_keeping(&mut second, dice);
    }
    let changing = dice.one_in(2);
    // One change only: a second might undo it.
    let changed = changing && edit_changing(&mut second, dice);
    let [a, b] = [&first, &second].map(|request| {
        let mut out = String::new();
        write(&request.body, dice, &mut out);
        out
    });
    let [raw_a, raw_b] = [&a, &b].map(|text| serde_json::from_str::<&RawValue>(text).unwrap());
    let same = same_scope(&first, &second) && same_text(raw_a, raw_b, &IGNORED);
    let [key_a, key_b] = [(&first, &a), (&second, &b)].map(|(r, text)| key(&scope(r), text.as_bytes()).unwrap());
    counts.pairs += 1;
    counts.same += u64::from(same);
    counts.mislabelled += u64::from(same == changed);
    counts.wrong += u64::from(same != (key_a == key_b));
    counts.lies += u64::from(!same && key_a == key_b);
    if same != (key_a == key_b) || same == changed {
        println!("same={same} changed={changed}\n  {a}\n  {b}\n  {first:?}\n  {second:?}");
    }
}

#[test]
fn keys_are_equal_exactly_if_the_requests_are() {
    let wanted = std::env::var("TURNPIKE_CACHE_PAIRS").ok().and_then(|n| n.parse().ok()).unwrap_or(DEFAULT_PAIRS);
    let threads = 2;
    let runs = std::thread::scope(|threads_of| {
        let start = |thread: u64| {
            threads_of.spawn(move || {
                let mut dice = Dice(thread + 1);
                let mut counts = Counts::default();
                for _ in 0..wanted.div_ceil(threads) {
                    try_pair(&mut dice, &mut counts);
                }
                counts
            })
        };
        let started: Vec<_> = (0..threads).map(start).collect();
        started.into_iter().map(|run| run.join().unwrap()).collect::<Vec<_>>()
    });
    let sum = |of: fn(&Counts) -> u64| runs.iter().map(of).sum::<u64>();
    let (pairs, same) = (sum(|c| c.pairs), sum(|c| c.same));
    let (wrong, lies, mislabelled) = (sum(|c| c.wrong), sum(|c| c.lies), sum(|c| c.mislabelled));
    println!(
        "cache keys: {pairs} pairs, {same} of one meaning, {} of different meaning, {wrong} wrong, {lies} lies, \
         {mislabelled} where the reference and the edit disagree",
        pairs - same
    );
    assert!(same > pairs / 4 && same < pairs - pairs / 4);
    assert_eq!((wrong, lies, mislabelled), (0, 0, 0));
}
