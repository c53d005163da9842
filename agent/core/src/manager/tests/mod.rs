mod allocation;
mod dispatch;
mod jobs;
mod lifecycle;
mod modes;
mod placement;
mod requests;
mod updates;
