//! What somebody else deletes is written again, however often they interfere.

use std::sync::Arc;

use model::cluster::Dirty;
use model::feed::Update;
use proptest::prelude::*;
use proxy::backend::fake::Fake;
use proxy::sync::Syncer;

use crate::history::{cluster, config, history};

proptest! {
    #![proptest_config(crate::config_of_tests())]

    #[test]
    fn a_repair_that_is_interfered_with_is_repaired(history in history(), n_more in 0_usize..3) {
        let snapshot = cluster(&history).snapshot();
        let update = Update { snapshot: snapshot.clone(), dirty: Dirty::everything() };
        let mut syncer =
            Syncer::new(Fake::default(), config(), Arc::new(|_| Ok(())), Box::new(|_| Ok(())))
                .unwrap();
        syncer.update(&update).unwrap();
        let before = syncer.backend().tables().clone();
        syncer.backend().empty(n_more);
        let mut round = syncer.audit(&snapshot).unwrap().expect("it is noticed");
        for _ in 0..n_more {
            prop_assert!(round.retry_after.is_some() && round.n_failed > 0);
            round = syncer.retry(&snapshot).unwrap();
        }
        prop_assert_eq!((round.retry_after, round.n_failed), (None, 0));
        prop_assert_eq!(round.n_repairs, 1, "it is counted once it is made good");
        prop_assert_eq!(syncer.backend().tables(), &before);
        prop_assert!(syncer.audit(&snapshot).unwrap().is_none());
    }
}
