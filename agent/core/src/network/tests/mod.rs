mod dirty;
mod dns;
mod golden;
mod mesh;
