//! From the feed to the view that answers.

use model::feed::FeedReader;

use super::{Names, clock};
use crate::zone::Origin;

/// Answers from what the feed says, until it ends.
pub async fn follow(mut feed: FeedReader, names: Names) {
    while let Some(update) = feed.next().await {
        let before = names.view();
        names.publish(before.update(
            &update.snapshot,
            &update.dirty,
            Origin::Watch,
            clock::serial(),
        ));
    }
}
