"""What every command needs: device and precision, whole files, models from weight dirs."""
