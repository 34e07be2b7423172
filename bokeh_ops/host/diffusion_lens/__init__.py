"""BokehDiff in the host: PISA in its UNet, weights through its patches, pictures of any size through both."""
