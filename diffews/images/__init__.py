"""Pictures and masks: decoding, resizing, painting and drawing. Knows no data set and no model."""
