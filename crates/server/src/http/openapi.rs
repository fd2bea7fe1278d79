//! The OpenAPI 3.1 document, made from the routes themselves.
//!
//! A handler says what is its own: path, parameters, body, success, and conflicts. What follows
//! from the shape of a route is added here to all of them, so that no route can forget it: the
//! token and its 401, 400 for whatever takes input, 404 for whatever names something, 413 for
//! bodies, 500. `docs/openapi.json` is the reviewed copy; a test compares.
//!
//! The document needs no token: it is the same for every installation of a version, its text is
//! public with the source, and tools that read it cannot always send one.

use super::{guarded_routes, open_routes};
use axum::Json;
use std::collections::BTreeMap;
use std::sync::LazyLock;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    Array, Components, Content, ContentBuilder, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder, Ref,
    RefOr, Required, Response, ResponseBuilder, Schema,
};

const TOKEN: &str = "token";

type Schemas = BTreeMap<String, RefOr<Schema>>;

static DOCUMENT: LazyLock<OpenApi> = LazyLock::new(build);

/// The document of this version.
pub fn document() -> &'static OpenApi {
    &DOCUMENT
}

/// `GET /api/openapi.json`
pub async fn serve() -> Json<&'static OpenApi> {
    Json(document())
}

fn build() -> OpenApi {
    let info = InfoBuilder::new()
        .title("dumont")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(include_str!("openapi.md")))
        .license(Some(
            LicenseBuilder::new()
                .name("Apache-2.0")
                .identifier(Some("Apache-2.0"))
                .build(),
        ));
    let empty = OpenApiBuilder::new().info(info.build()).build();
    let mut guarded = guarded_routes().into_openapi();
    for (path, item) in &mut guarded.paths.paths {
        operations(item).for_each(|operation| complete(path, operation));
    }
    let mut document = empty.merge_from(open_routes().into_openapi()).merge_from(guarded);
    let components = document.components.get_or_insert_with(Components::new);
    components.add_security_scheme(TOKEN, bearer());
    refer_to_items(components);
    let schemas = &components.schemas;
    for item in document.paths.paths.values_mut() {
        for operation in operations(item) {
            name_operation(operation);
            body_may_be_empty(operation, schemas);
        }
    }
    document
}

fn bearer() -> SecurityScheme {
    let scheme = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .bearer_format("dmt_{id}_{secret}")
        .description(Some("`dumont token create NAME` makes one; the first is in `admin.token` in the server's data directory."));
    SecurityScheme::Http(scheme.build())
}

/// A page names the type of its items; utoipa would repeat it in every page.
fn refer_to_items(components: &mut Components) {
    for (name, schema) in &mut components.schemas {
        let Some(item) = name.strip_prefix("Page_") else {
            continue;
        };
        if let RefOr::T(Schema::Object(page)) = schema {
            let items = Array::new(Ref::from_schema_name(item));
            page.properties
                .insert("items".into(), RefOr::T(Schema::Array(items)));
        }
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [
        &mut item.get,
        &mut item.put,
        &mut item.post,
        &mut item.delete,
        &mut item.patch,
    ]
    .into_iter()
    .filter_map(Option::as_mut)
}

/// Handlers are called after their verb (`list`); ids must be unique in the document.
fn name_operation(operation: &mut Operation) {
    let noun = operation.tags.as_ref().and_then(|t| t.first()).cloned();
    if let (Some(noun), Some(verb)) = (noun, operation.operation_id.take()) {
        operation.operation_id = Some(format!("{noun}_{verb}"));
    }
}

/// An empty body reads as `{}` (`super::body`): only one with a required field must be there.
fn body_may_be_empty(operation: &mut Operation, schemas: &Schemas) {
    let Some(RefOr::T(body)) = &mut operation.request_body else {
        return;
    };
    let named = body.content.values().find_map(|media| match media {
        RefOr::T(Content {
            schema: Some(RefOr::Ref(to)),
            ..
        }) => to.ref_location.rsplit('/').next(),
        _ => None,
    });
    let schema = named.and_then(|name| schemas.get(name));
    if let Some(RefOr::T(Schema::Object(object))) = schema
        && object.required.is_empty()
    {
        body.required = Some(Required::False);
    }
}

/// Adds what follows from the route's shape. What the handler declared itself stays.
fn complete(path: &str, operation: &mut Operation) {
    operation.security = Some(vec![SecurityRequirement::new(TOKEN, Vec::<String>::new())]);
    let takes_input = operation.parameters.as_ref().is_some_and(|p| !p.is_empty());
    let takes_body = operation.request_body.is_some();
    let mut add = |status: &str, description: &str| {
        let known = &mut operation.responses.responses;
        known
            .entry(status.to_owned())
            .or_insert_with(|| RefOr::T(error(description)));
    };
    if takes_input || takes_body {
        add("400", "The request is not valid; the message says where");
    }
    add("401", "No token, an unknown one, or a revoked one");
    if path.contains('{') {
        add("404", "There is none of that name or id");
    }
    if takes_body {
        add("413", "The body is too large");
    }
    add("500", "The server or its database failed; the log says how");
}

fn error(description: &str) -> Response {
    let body = ContentBuilder::new().schema(Some(Ref::from_schema_name("ErrorBody")));
    ResponseBuilder::new()
        .description(description)
        .content("application/json", body.build())
        .build()
}
