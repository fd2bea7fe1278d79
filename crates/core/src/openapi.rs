//! Schemas of what is a text in JSON but a checked type here.
//!
//! Only behind the feature `openapi`, which the server turns on: the agent carries none of it.
//! A derived schema would show the fields of the Rust type, not the text that serde writes.

use crate::blacklist::CudaVersion;
use crate::id::{Digest, MachineRef, WorkspaceName};
use crate::key::WorkspaceKey;
pub use utoipa;
use utoipa::openapi::{ObjectBuilder, RefOr, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

/// A text of a pattern, with an example.
fn text(pattern: &str, example: &str, description: &str) -> RefOr<Schema> {
    let object = ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(Some(pattern))
        .examples([example])
        .description(Some(description));
    RefOr::T(Schema::Object(object.build()))
}

/// One of some words.
pub fn words(all: &[&'static str]) -> RefOr<Schema> {
    let object = ObjectBuilder::new()
        .schema_type(Type::String)
        .enum_values(Some(all.iter().copied()));
    RefOr::T(Schema::Object(object.build()))
}

/// `workflow kind` becomes `WorkflowKind`: `Kind` alone says nothing in a document.
pub fn title(what: &str) -> String {
    what.split(' ')
        .flat_map(|word| {
            let mut letters = word.chars();
            let first = letters.next().map(|c| c.to_ascii_uppercase());
            first.into_iter().chain(letters)
        })
        .collect()
}

/// A TCP port in a list; an attribute reaches the list only.
pub struct Port;

impl PartialSchema for Port {
    fn schema() -> RefOr<Schema> {
        let object = ObjectBuilder::new()
            .schema_type(Type::Integer)
            .minimum(Some(1))
            .maximum(Some(u16::MAX));
        RefOr::T(Schema::Object(object.build()))
    }
}
impl ToSchema for Port {}

macro_rules! texts {
    ($($name:ident: $pattern:literal, $example:literal, $description:literal;)+) => {$(
        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                text($pattern, $example, $description)
            }
        }
        impl ToSchema for $name {}
    )+};
}

texts! {
    MachineRef: "^[A-Za-z0-9._-]{1,50}:[A-Za-z0-9._-]{1,100}$", "vast:12345",
        "One physical host at a provider.";
    WorkspaceName: "^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$", "llama-train",
        "1 to 40 lower-case letters, digits and inner dashes.";
    Digest: "^[0-9a-fA-F]{64}$", "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
        "BLAKE3, 256 bits in hexadecimal digits.";
    WorkspaceKey: "^[0-9a-fA-F]{64}$", "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff",
        "The key of an encrypted workspace, 256 bits in hexadecimal digits.";
    CudaVersion: "^[0-9]{1,3}(\\.[0-9]{1,3})?$", "12.8", "A CUDA version.";
}

/// For enums made by [`crate::words!`].
#[macro_export]
macro_rules! words_schema {
    ($name:ident, $what:literal) => {
        impl $crate::openapi::utoipa::PartialSchema for $name {
            fn schema() -> $crate::openapi::utoipa::openapi::RefOr<$crate::openapi::utoipa::openapi::Schema> {
                let words: Vec<&'static str> = Self::ALL.iter().map(|w| w.as_str()).collect();
                $crate::openapi::words(&words)
            }
        }
        impl $crate::openapi::utoipa::ToSchema for $name {
            fn name() -> std::borrow::Cow<'static, str> {
                $crate::openapi::title($what).into()
            }
        }
    };
}
