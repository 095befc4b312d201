//! The data-plane listeners. Knows `pagestore`; asks Python for whatever is not hot.
