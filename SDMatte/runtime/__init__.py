"""What every command needs: configs, settings, processes, signals, devices, files and paths."""
