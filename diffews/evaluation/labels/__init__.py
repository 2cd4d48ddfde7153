"""Labels of pictures in the formats of other tools, made of masks alone: `write.write_labels`."""

# png, the mask itself, is always written: a run goes on by it
FORMATS = ("png", "coco", "yolo", "label_studio", "labelme", "palette", "cutout", "scores")
PICTURES = ("palette", "cutouts", "scores")  # folders in `out` with a picture of each query
FOLDERS = ("labels", "images", "labelme", "frames", *PICTURES)  # frames: of clips
