mod allocation;
mod dispatch;
mod lifecycle;
mod placement;
mod requests;
mod updates;
