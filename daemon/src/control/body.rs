//! Requests parsed at the door, and errors rendered.

use std::path::PathBuf;

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use img_types::{DeviceName, ImageName};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::ApiError;

/// What a handler answers.
pub(super) type Answer = Result<Json<Value>, ApiError>;

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.kind.status());
        let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self.to_json())).into_response()
    }
}

/// Parses a request's body; a missing one is an object without fields.
pub(super) fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, ApiError> {
    let body: &[u8] = if body.is_empty() { b"{}" } else { body };
    serde_json::from_slice(body)
        .map_err(|error| ApiError::usage(format!("The request does not parse: {error}.")))
}

/// Parses an image's name.
pub(super) fn image_name(text: &str) -> Result<ImageName, ApiError> {
    ImageName::parse(text)
        .map_err(|error| ApiError::usage(format!("{text:?} is no image name: {error}.")))
}

/// Parses a device's name.
pub(super) fn device_name(text: &str) -> Result<DeviceName, ApiError> {
    DeviceName::parse(text)
        .map_err(|error| ApiError::usage(format!("{text:?} is no device name: {error}.")))
}

/// Takes a path that must be absolute: the daemon's own folder is not the caller's.
pub(super) fn absolute(path: PathBuf) -> Result<PathBuf, ApiError> {
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(ApiError::usage(format!(
            "{} is not an absolute path.",
            path.display()
        )))
    }
}

pub(super) async fn no_route() -> ApiError {
    ApiError::not_found(
        "The control API has no such resource.",
        "docs/control-api.md lists them; imgctl and imgd may be of different releases.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(default, deny_unknown_fields)]
    struct Options {
        wait: bool,
    }

    #[test]
    fn a_missing_body_is_empty_and_a_misspelt_field_is_an_error() {
        assert_eq!(parse::<Options>(&Bytes::new()).unwrap(), Options::default());
        let misspelt = parse::<Options>(&Bytes::from_static(b"{\"wiat\": true}"));
        assert_eq!(misspelt.unwrap_err().kind.codes().1, 2);
        assert!(parse::<Options>(&Bytes::from_static(b"[")).is_err());
    }

    #[test]
    fn names_and_paths_are_checked() {
        assert!(image_name("vm").is_ok());
        assert_eq!(image_name("a/b").unwrap_err().kind.codes().1, 2);
        assert!(device_name("-x").is_err());
        assert!(absolute("x/y".into()).is_err());
    }
}
