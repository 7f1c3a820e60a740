"""What command line and console show: figures put together from several rooms, without a way to change them."""
