//! Pure codecs of what travels on 2377: join tokens and protobuf messages. No sockets, and nothing else
//! of ours: the conversions between messages and objects are `api::protobuf`.

#[cfg(test)]
mod golden;
pub mod skep;
pub mod swarmkit;
pub mod token;
pub mod unlock;
