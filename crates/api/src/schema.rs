//! Parts of the custom resource's schema that derives cannot express.

use crate::condition::Condition;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use std::borrow::Cow;

/// Schema of a name in [`crate::names`], with the limits of its constructor.
pub(crate) fn name(what: &str) -> Schema {
    json_schema!({
        "type": "string",
        "minLength": 1,
        "maxLength": 253,
        "pattern": r"^[^,\x00-\x1f\x7f-\x9f]+$",
        "x-kubernetes-validations": [{
            "rule": "size(bytes(self)) <= 253",
            "message": format!("{what} has more than 253 bytes"),
        }],
    })
}

/// Schema of a list of conditions, which server-side apply merges by type.
pub(crate) fn conditions(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 32,
        "items": generator.subschema_for::<Condition>(),
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
    })
}

/// Schema of a timestamp.
pub(crate) struct Time;

impl JsonSchema for Time {
    fn schema_name() -> Cow<'static, str> {
        "Time".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "date-time" })
    }
}

/// Schema of an enum with an open-ended list of values: any string of at most 64 characters.
pub(crate) struct OpenEnum;

impl JsonSchema for OpenEnum {
    fn schema_name() -> Cow<'static, str> {
        "Word".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "maxLength": 64 })
    }
}
