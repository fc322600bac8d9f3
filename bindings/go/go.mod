module vmm

go 1.23
