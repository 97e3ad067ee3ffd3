//! Laws that hold over files of all shapes.
