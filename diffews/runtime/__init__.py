"""What every command needs: device and precision, files that are whole or not there, models from weight dirs."""
