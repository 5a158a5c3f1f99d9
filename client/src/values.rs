//! Texts that people type, parsed at the door.

use std::path::{Path, PathBuf};

use img_types::{DeviceName, ImageName};
pub(crate) use img_types::{parse_duration as duration, parse_size as size};

use crate::failure::Failure;

/// Parses an image's name.
pub(crate) fn image(text: &str) -> Result<ImageName, String> {
    ImageName::parse(text).map_err(|error| error.to_string())
}

/// Parses the name of a branch to be; an empty one stands for a free one.
pub(crate) fn new_branch(text: &str) -> Result<String, String> {
    match text {
        "" => Ok(String::new()),
        name => image(name).map(|name| name.to_string()),
    }
}

/// Parses a device's name.
pub(crate) fn device(text: &str) -> Result<DeviceName, String> {
    DeviceName::parse(text).map_err(|error| error.to_string())
}

/// Checks the text that names a commit: a full id, a prefix of 6 or more digits, `head`, `head~2`.
pub(crate) fn commit(text: &str) -> Result<String, String> {
    let back = text.strip_prefix("head").map(|rest| {
        rest.is_empty()
            || rest
                .strip_prefix('~')
                .is_some_and(|steps| steps.parse::<u32>().is_ok())
    });
    let digits = (6..=64).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    if back == Some(true) || digits {
        Ok(text.to_owned())
    } else {
        Err("a commit is its id, the first 6 or more digits of it, head, or head~2".to_owned())
    }
}

/// What addresses a checkout: an image's name, or the folder it is checked out in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CheckoutRef {
    text: String,
    /// The folder that a name would be as a path.
    folder: Option<String>,
}

impl CheckoutRef {
    /// Takes a name, which may be a folder here as well, or a path: anything that is no name.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let path = absolute(Path::new(text)).map_err(|failure| failure.message)?;
        let path = path.to_str().map(str::to_owned);
        match image(text) {
            Ok(name) => Ok(Self {
                text: name.to_string(),
                folder: path,
            }),
            Err(_) => Ok(Self {
                text: path.ok_or("a folder that is not UTF-8 is addressed by its image's name")?,
                folder: None,
            }),
        }
    }

    /// The path of the checkout's resource.
    pub(crate) fn resource(&self) -> String {
        self.path("")
    }

    /// The path of something that is done with the checkout.
    pub(crate) fn verb(&self, verb: &str) -> String {
        self.path(&format!("/{verb}"))
    }

    fn path(&self, end: &str) -> String {
        let mut path = format!("/v1/checkouts/{}{end}", percent_encode(&self.text));
        if let Some(folder) = &self.folder {
            path.push_str(&format!("?dir={}", percent_encode(folder)));
        }
        path
    }
}

/// The path of the resource of the checkout in a folder.
pub(crate) fn folder_resource(dir: &str) -> String {
    format!("/v1/checkouts/{}", percent_encode(dir))
}

/// The path of an image's resource.
pub(crate) fn image_resource(name: &ImageName) -> String {
    format!("/v1/images/{}", percent_encode(name.as_str()))
}

/// Escapes everything but unreserved characters (RFC 3986, section 2.3).
pub(crate) fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// The folder to mount an image at: the one that is given, else one of the image's name here.
pub(crate) fn mount_dir(dir: Option<PathBuf>, name: &ImageName) -> Result<String, Failure> {
    let dir = absolute(&dir.unwrap_or_else(|| name.as_str().into()))?;
    dir.into_os_string()
        .into_string()
        .map_err(|_| Failure::usage("The folder to mount at is not UTF-8."))
}

/// Makes a path absolute without following symbolic links.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    let path = std::path::absolute(path)
        .map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
    // `std::path::absolute` keeps `..`; a checkout's folder is remembered without.
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => {
                clean.pop();
            }
            part => clean.push(part),
        }
    }
    Ok(clean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits() {
        let full = "ab".repeat(32);
        for good in ["head", "head~2", "abcdef", full.as_str()] {
            assert_eq!(commit(good).as_deref(), Ok(good));
        }
        for bad in ["", "abcde", "head~", "head~x", "heads", "ABCDEF", "ghijkl"] {
            assert!(commit(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_checkout_is_a_name_or_a_folder() {
        let name = CheckoutRef::parse("größe").unwrap();
        let here = percent_encode(std::env::current_dir().unwrap().to_str().unwrap());
        assert_eq!(
            name.resource(),
            format!("/v1/checkouts/gr%C3%B6%C3%9Fe?dir={here}%2Fgr%C3%B6%C3%9Fe")
        );
        let folder = CheckoutRef::parse("/tmp/x/../vm").unwrap();
        assert_eq!(folder.resource(), "/v1/checkouts/%2Ftmp%2Fvm");
        assert_eq!(folder.verb("commit"), "/v1/checkouts/%2Ftmp%2Fvm/commit");
        let spaced = CheckoutRef::parse("my vm").unwrap();
        assert_eq!(spaced.resource(), format!("/v1/checkouts/{here}%2Fmy%20vm"));
        assert!(CheckoutRef::parse("").is_err());
    }

    #[test]
    fn an_image_is_mounted_in_a_folder_of_its_name_unless_one_is_given() {
        let name = ImageName::parse("vm").unwrap();
        let here = std::env::current_dir().unwrap();
        let of_name = mount_dir(None, &name).unwrap();
        assert_eq!(Path::new(&of_name), here.join("vm"));
        assert_eq!(mount_dir(Some("/x/../y z".into()), &name).unwrap(), "/y z");
    }
}
