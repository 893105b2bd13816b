"""The training side: lazy views, buffered writers, a data flow, augmentation and patches."""
