// Part of programs under AddressSanitizer: OpenMPI's plugins stay loaded, so that LeakSanitizer can name what they leave
// behind (tests/support/lsan.supp).
extern "C" int dlclose(void*) { return 0; }
