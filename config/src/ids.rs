//! Identities. Newtypes, so that a key's id is never handed to something that wants an organization's.

use minicbor::{Decode, Decoder, Encode, Encoder, decode, encode};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }

        // On the wire: 16 bytes.
        impl<C> Encode<C> for $name {
            fn encode<W: encode::Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), encode::Error<W::Error>> {
                e.bytes(self.0.as_bytes())?.ok()
            }
        }

        impl<'b, C> Decode<'b, C> for $name {
            fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
                let position = d.position();
                Uuid::from_slice(d.bytes()?).map(Self).map_err(|_| decode::Error::message("an id has 16 bytes").at(position))
            }
        }
    };
}

uuid_id!(
    /// An organization: the tenant that owns keys and gets the invoice.
    OrgId
);
uuid_id!(
    /// An API key's identity. Not secret, unlike the key itself.
    KeyId
);
uuid_id!(
    /// A usage event: UUIDv7 made by the edge. Every hop may deliver an event twice; what is counted is this id.
    EventId
);

impl EventId {
    /// Milliseconds since the Unix epoch, as carried inside the UUIDv7 itself. Partitions derive from this, so that
    /// two deliveries of one event can never land in different ones. Zero for an id that is no UUIDv7.
    pub fn unix_ms(self) -> u64 {
        self.0.get_timestamp().map_or(0, |t| {
            let (seconds, nanos) = t.to_unix();
            seconds * 1_000 + u64::from(nanos) / 1_000_000
        })
    }
}
