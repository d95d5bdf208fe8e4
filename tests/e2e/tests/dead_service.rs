//! One dead service never starves the others, and is served as soon as it has recovered.

mod table;
