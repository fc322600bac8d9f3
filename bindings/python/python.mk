# The Python binding: a fragment of the Makefile.
#
#	make check-python	everything that needs no KVM
#	make check-python-kvm	the same tests, and those with real guests, in the lab
#
# PYTHON is CPython 3.11 or newer; what else is wanted comes from PyPI, once, into
# build/py/venv.

PYTHON	?= python3
PY	:= build/py
PYDIR	:= bindings/python
PYPIP	:= 'cffi>=1.16' 'setuptools>=77' wheel 'pytest>=8' 'ruff>=0.8' 'mypy>=1.11'

.PHONY: python check-python
python: $(PY)/venv/done $B/libvmm.so	## the Python package, in place, against libvmm.so of this tree
	@mkdir -p $(PY)
	@printf 'Name: vmm\nDescription: this tree\nVersion: $(VERSION)\nCflags: -I%s\nLibs: -L%s/$B -Wl,-rpath,%s/$B -lvmm\n' \
		'$(CURDIR)' '$(CURDIR)' '$(CURDIR)' >$(PY)/vmm.pc
	@cd $(PYDIR) && VMM_SYSTEM=1 PKG_CONFIG_PATH=$(CURDIR)/$(PY) $(CURDIR)/$(PY)/venv/bin/python \
		setup.py -q build_ext --force --inplace --build-temp $(CURDIR)/$(PY)/build

check-python: python $(PY)/fake/libvmm.so.0	## the Python binding: tests on the fake KVM, types, style
	FULL='$(FULL)' $(PYDIR)/tests/check $(CURDIR)/$(PY)

$(PY)/venv/done:
	$(PYTHON) -m venv $(PY)/venv
	$(PY)/venv/bin/pip install -q $(PYPIP)
	@touch $@

# The library on a fake KVM, with guests to choose from.
$(PY)/fake/libvmm.so.0: $(filter-out $B/core/kvm.o,$(OBJ)) tests/unit/fake_kvm.c tests/unit/fake_kvm.h $(PYDIR)/tests/fake_guests.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -fPIC -shared -Wl,-soname,libvmm.so.0 -Wl,-z,defs -o $@ \
		$(filter %.o %.c,$^) $(LDFLAGS) $(LIBS)

build/reference/python.md: python
	@mkdir -p $(@D)
	@{ echo '# The Python package vmm'; echo; \
		cd $(PYDIR) && $(CURDIR)/$(PY)/venv/bin/python reference.py; } > $@

.PHONY: python-lab check-python-kvm
python-lab: $(PY)/venv/done
	@$(PYDIR)/lab $(CURDIR)/$(PY)

check-python-kvm: python-lab	## the Python binding on real KVM, in the lab (T=pytest's arguments)
	@FULL='$(FULL)' $(PYDIR)/tests/check-kvm $(CURDIR)/$(PY) $(if $(findstring command,$(origin T)),$(T))
