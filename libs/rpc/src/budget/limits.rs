//! What a request may contain, looked at before it is decoded.
//!
//! An element of a list takes two bytes on the wire and a hundred in memory. Lists are counted while their bytes come in,
//! so that a message that would grow beyond all bounds is refused before anything is made of it. Every list of every
//! request has a limit, also one that nobody thought of. Lists of the same field add up over the whole message: what is
//! said of a singular field twice is merged when it is decoded.

use std::collections::BTreeMap;
use std::sync::Arc;

use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};

use crate::MAX_RPC_MESSAGE_BYTES;

/// Fields with a number below are found at once.
const SMALL_NUMBERS: usize = 16;
/// Elements of a list that has no limit of its own.
const ELEMENTS: u32 = 1_024;

/// Sizes of messages and lists that callers may send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestLimits {
    message_bytes: usize,
    of_methods: BTreeMap<&'static str, usize>,
    of_lists: BTreeMap<&'static str, u32>,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self::new(MAX_RPC_MESSAGE_BYTES)
    }
}

impl RequestLimits {
    /// Messages of every method up to `message_bytes`, lists up to 1,024 elements.
    pub fn new(message_bytes: usize) -> Self {
        Self {
            message_bytes,
            of_methods: BTreeMap::new(),
            of_lists: BTreeMap::new(),
        }
    }

    /// Another size for the messages of one method, `/package.Service/Method`.
    #[must_use]
    pub fn message(mut self, method: &'static str, bytes: usize) -> Self {
        self.of_methods.insert(method, bytes);
        self
    }

    /// Another number of elements for one field, `package.Message.field`, counted over the whole request.
    #[must_use]
    pub fn list(mut self, field: &'static str, elements: u32) -> Self {
        self.of_lists.insert(field, elements);
        self
    }

    pub(crate) fn message_bytes(&self, method: &str) -> usize {
        self.of_methods.get(method).copied().unwrap_or(self.message_bytes)
    }
}

/// What is known of all messages: which fields are lists, and what their elements take.
#[derive(Debug)]
pub(crate) struct Shapes {
    shapes: Vec<Shape>,
    places: BTreeMap<String, u32>,
    pub(super) lists: Vec<List>,
}

/// One kind of message.
#[derive(Debug)]
pub(super) struct Shape {
    fields: Vec<Field>,
    /// Places of the fields with small numbers in `fields`, beyond its end for those that are not there.
    small: [u16; SMALL_NUMBERS],
}

/// A field that has a length, or is a list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field {
    number: u32,
    pub(super) kind: Kind,
    /// Place in the table of lists.
    pub(super) list: Option<u32>,
}

/// What the bytes of a field are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A message of that shape.
    Message(u32),
    /// Text, which is copied out of the received bytes.
    Text,
    /// Bytes, which stay where they were received.
    Bytes,
    /// A number.
    Number,
}

/// A list and its limit.
#[derive(Debug)]
pub(super) struct List {
    /// `Message.field`, for people.
    pub(super) name: String,
    pub(super) limit: u32,
    /// Memory of an element; a list has room for twice as many as are in it.
    pub(super) element_bytes: u64,
}

/// The requests of one method.
#[derive(Clone, Debug)]
pub(crate) struct RequestShape {
    pub(super) shapes: Arc<Shapes>,
    pub(super) root: u32,
}

impl Shape {
    fn new(fields: Vec<Field>) -> Self {
        let mut small = [u16::MAX; SMALL_NUMBERS];
        for (field, place) in fields.iter().zip(0..u16::MAX) {
            if let Some(known) = small.get_mut(field.number as usize) {
                *known = place;
            }
        }
        Self { fields, small }
    }

    #[inline]
    pub(super) fn field(&self, number: u64) -> Option<&Field> {
        if let Some(place) = self.small.get(usize::try_from(number).unwrap_or(usize::MAX)) {
            return self.fields.get(usize::from(*place));
        }
        self.fields.iter().find(|field| u64::from(field.number) == number)
    }
}

impl Shapes {
    /// Those of encoded descriptor sets.
    pub(crate) fn of(descriptors: &[&[u8]], limits: &RequestLimits) -> Self {
        let mut messages = BTreeMap::new();
        let sets = descriptors
            .iter()
            .filter_map(|set| FileDescriptorSet::decode(*set).ok());
        for file in sets.flat_map(|set| set.file) {
            let package = format!(".{}", file.package());
            for message in file.message_type {
                collect(&package, message, &mut messages);
            }
        }
        let mut made = Self {
            shapes: Vec::new(),
            places: messages.keys().cloned().zip(0..).collect(),
            lists: Vec::new(),
        };
        for (name, message) in &messages {
            let fields = message.field.iter();
            let fields = fields.filter_map(|field| made.field(name, field, limits, &messages));
            let fields = fields.collect();
            made.shapes.push(Shape::new(fields));
        }
        made
    }

    fn field(
        &mut self,
        message: &str,
        field: &FieldDescriptorProto,
        limits: &RequestLimits,
        messages: &BTreeMap<String, DescriptorProto>,
    ) -> Option<Field> {
        let kind = match field.r#type() {
            Type::Message => Kind::Message(*self.places.get(field.type_name())?),
            Type::String => Kind::Text,
            Type::Bytes => Kind::Bytes,
            _ => Kind::Number,
        };
        let list = (field.label() == Label::Repeated).then(|| {
            let full = format!("{}.{}", message.trim_start_matches('.'), field.name());
            let (_, short) = message.rsplit_once('.').unwrap_or_default();
            let place = u32::try_from(self.lists.len()).unwrap_or(u32::MAX);
            self.lists.push(List {
                name: format!("{short}.{}", field.name()),
                limit: limits.of_lists.get(full.as_str()).copied().unwrap_or(ELEMENTS),
                element_bytes: 2 * memory(field, messages, 0),
            });
            place
        });
        let counts = list.is_some() || matches!(kind, Kind::Message(_) | Kind::Text);
        let number = u32::try_from(field.number()).ok()?;
        counts.then_some(Field { number, kind, list })
    }

    #[inline]
    pub(super) fn shape(&self, place: u32) -> &Shape {
        &self.shapes[place as usize]
    }

    /// What a method with this request takes; `None` when nothing is known of it.
    pub(crate) fn request(self: &Arc<Self>, message: &str) -> Option<RequestShape> {
        Some(RequestShape {
            shapes: Arc::clone(self),
            root: *self.places.get(message)?,
        })
    }
}

fn collect(outer: &str, message: DescriptorProto, messages: &mut BTreeMap<String, DescriptorProto>) {
    let name = format!("{outer}.{}", message.name());
    for nested in &message.nested_type {
        collect(&name, nested.clone(), messages);
    }
    messages.insert(name, message);
}

/// About what one value of a field takes in the decoded message, without what text points to.
fn memory(field: &FieldDescriptorProto, messages: &BTreeMap<String, DescriptorProto>, depth: usize) -> u64 {
    // What contains itself is decoded behind a pointer.
    const DEEPEST: usize = 8;
    match field.r#type() {
        Type::String => 24,
        Type::Bytes => 32,
        Type::Message if depth < DEEPEST => {
            let fields = messages.get(field.type_name()).map(|message| &message.field);
            let value = |field: &FieldDescriptorProto| match field.label() {
                Label::Repeated => 24,
                _ => memory(field, messages, depth + 1),
            };
            fields.into_iter().flatten().map(value).sum::<u64>().max(8)
        }
        _ => 8,
    }
}
