# SPDX-License-Identifier: GPL-2.0-or-later
#
# make                     userspace, optimized, into build/
# make modules KDIR=DIR    the kernel module for the kernel whose build tree is DIR
# make unit [SAN=1]        build and run the unit tests (SAN=1: ASan and UBSan, in build/san)
# make install DESTDIR= PREFIX=
# make clean

VERSION := 0.1.0
KDIR    ?= /lib/modules/$(shell uname -r)/build
PREFIX  ?= /usr/local
O       ?= build$(if $(SAN),/san)
Q       := $(if $(V),,@)
PKG_CONFIG ?= pkg-config

CC       ?= gcc
PKGS     := libzmq libczmq libcrypto libzstd libprotobuf-c libnbd sqlite3 libpq jansson \
            libsystemd liburing devmapper
CFLAGS   ?= -O2 -g
WARN     := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla \
            -Wno-unused-parameter -Wno-sign-compare $(if $(WERROR),-Werror)
SANFLAGS := $(if $(SAN),-fsanitize=address -fsanitize=undefined -fno-sanitize-recover=undefined \
            -fno-omit-frame-pointer)
CPPFLAGS += -D_GNU_SOURCE -DVMDEDUP_VERSION='"$(VERSION)"' -Iuserspace -Iinclude/uapi -Ikernel \
            -I$(O)/gen $(shell $(PKG_CONFIG) --cflags $(PKGS))
LDLIBS   := $(shell $(PKG_CONFIG) --libs $(PKGS)) -llmdb -linih -lpthread -lm

# A library for each folder of userspace/, in the order in which they may know one another:
# each may include only what stands to its right.
LAYERS := cli agent meta data lib cache blockio net proto base
BINS   := vmdedup vmdedup-agent vmdedup-meta vmdedup-data

lib_srcs = $(filter-out %/main.c,$(wildcard userspace/$1/*.c))
objs     = $(patsubst %.c,$(O)/obj/%.o,$1)

# What knows the disk of a cache is compiled once for the kernel and once for the offline tools.
KERNEL_SHARED := $(wildcard $(addprefix kernel/,codec.c journal.c table.c ledger.c))

PROTO_C := $(O)/gen/proto/vmdedup.pb-c.c
LIBS    := $(foreach l,$(LAYERS),$(O)/lib/libvmdedup-$l.a)

all: $(BINS:%=$(O)/bin/%)

$(O)/gen/proto/vmdedup.pb-c.c $(O)/gen/proto/vmdedup.pb-c.h &: userspace/proto/vmdedup.proto
	@mkdir -p $(O)/gen/proto
	$(Q)protoc-c --proto_path=userspace/proto --c_out=$(O)/gen/proto $<

# The meta server's schema and the way to it, as texts in the program.
$(O)/gen/meta/%.c: userspace/meta/%.sql
	@mkdir -p $(@D)
	$(Q){ echo 'const char meta_$*_sql[] ='; \
	      sed -e 's/\\/\\\\/g' -e 's/"/\\"/g' -e 's/.*/"&\\n"/' $<; echo ';'; } >$@

# --- compile ---------------------------------------------------------------------------------
$(O)/obj/%.o: %.c | $(O)/gen/proto/vmdedup.pb-c.h
	@mkdir -p $(@D)
	@$(if $(Q),echo "  CC      $<")
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -std=gnu11 $(WARN) $(SANFLAGS) -MMD -MP -c -o $@ $<

$(O)/obj/gen/%.o: $(O)/gen/%.c
	@mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) $(SANFLAGS) -c -o $@ $<

define layer_rule
$(O)/lib/libvmdedup-$1.a: $(call objs,$(call lib_srcs,$1)) $2
	@mkdir -p $$(@D)
	@rm -f $$@
	$$(Q)$$(AR) rcs $$@ $$^
endef
$(foreach l,$(filter-out proto cache meta,$(LAYERS)),$(eval $(call layer_rule,$l,)))
$(eval $(call layer_rule,proto,$(O)/obj/gen/proto/vmdedup.pb-c.o))
$(eval $(call layer_rule,meta,$(addprefix $(O)/obj/gen/meta/,schema.o upgrade_1.o upgrade_2.o)))
$(eval $(call layer_rule,cache,$(call objs,$(KERNEL_SHARED))))

main_of = userspace/$(if $(filter vmdedup,$1),cli,$(patsubst vmdedup-%,%,$1))/main.c
define bin_rule
$(O)/bin/$1: $(call objs,$(call main_of,$1)) $(LIBS)
	@mkdir -p $$(@D)
	@$$(if $$(Q),echo "  LD      $$@")
	$$(Q)$$(CC) $$(CFLAGS) $$(SANFLAGS) -o $$@ $$^ $$(LDLIBS)
endef
$(foreach b,$(BINS),$(eval $(call bin_rule,$b)))

# --- tests -----------------------------------------------------------------------------------
UNIT_TESTS := $(patsubst tests/unit/%.c,$(O)/tests/unit/%,$(wildcard tests/unit/*_test.c))
TEST_HELPERS := $(call objs,$(filter-out %_test.c,$(wildcard tests/unit/*.c)))

$(O)/tests/unit/%_test: $(O)/obj/tests/unit/%_test.o $(TEST_HELPERS) $(LIBS)
	@mkdir -p $(@D)
	@$(if $(Q),echo "  LD      $@")
	$(Q)$(CC) $(CFLAGS) $(SANFLAGS) $(WRAP) -o $@ $^ -lcmocka $(LDLIBS)
$(O)/tests/unit/agent_push_test: WRAP := -Wl,--wrap=fp_hash

# Simulations that drive the daemons' cores.
SIM_OBJS := $(call objs,$(wildcard tests/sim/*.c))
$(O)/tests/unit/%_sim_test: $(O)/obj/tests/unit/%_sim_test.o $(SIM_OBJS) $(LIBS)
	@mkdir -p $(@D)
	@$(if $(Q),echo "  LD      $@")
	$(Q)$(CC) $(CFLAGS) $(SANFLAGS) -o $@ $^ -lcmocka $(LDLIBS)

# One that runs whole daemons: their sources once more, with few shards and small tables, over a network,
# threads and a clock that are simulated.
FEW_OBJS := $(patsubst %.c,$(O)/few/%.o,$(foreach l,meta data lib proto base,$(call lib_srcs,$l)) \
              $(wildcard tests/sim/cluster/*.c) tests/sim/engine.c tests/unit/cluster_sim_test.c) \
            $(addprefix $(O)/few/gen/,proto/vmdedup.pb-c.o meta/schema.o meta/upgrade_1.o \
              meta/upgrade_2.o)
FEW      := -DSHARD_BITS=3 -DMETA_MAX_SERVERS=64 -DREDIRECT_BLOCKS=16 -DREDIRECT_PEERS=64 \
            -DJOIN_REPEAT_MS=6000
SIM_WRAP := pthread_create pthread_join pthread_mutex_lock pthread_mutex_unlock pthread_rwlock_rdlock \
            pthread_rwlock_wrlock pthread_rwlock_unlock pthread_cond_wait pthread_cond_signal \
            pthread_cond_broadcast clock_cond_wait clock_mono_ns clock_wall_s time usleep nanosleep \
            getrandom eventfd read write close poll
$(O)/few/%.o: %.c | $(O)/gen/proto/vmdedup.pb-c.h
	@mkdir -p $(@D)
	@$(if $(Q),echo "  CC      $< (few shards)")
	$(Q)$(CC) $(CPPFLAGS) $(FEW) $(CFLAGS) $(SANFLAGS) -std=gnu11 $(WARN) -MMD -MP -c -o $@ $<
$(O)/few/gen/%.o: $(O)/gen/%.c
	@mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -c -o $@ $<
$(O)/tests/unit/cluster_sim_test: $(FEW_OBJS)
	@mkdir -p $(@D)
	@$(if $(Q),echo "  LD      $@")
	$(Q)$(CC) $(CFLAGS) $(SANFLAGS) $(SIM_WRAP:%=-Wl,--wrap=%) -o $@ $^ -lcmocka $(LDLIBS)

# Fuzz targets run with the unit tests, over mutations of their seeds; `make fuzz` runs them
# under libFuzzer for FUZZ_SECONDS each. Findings: build/fuzz/findings.
FUZZERS := $(patsubst tests/fuzz/%.c,$(O)/tests/fuzz/%,$(wildcard tests/fuzz/*_fuzz.c))
FUZZ_SECONDS ?= 60

$(O)/tests/fuzz/%_fuzz: $(O)/obj/tests/fuzz/%_fuzz.o \
		$(if $(LIBFUZZER),,$(O)/obj/tests/fuzz/standalone.o) $(LIBS)
	@mkdir -p $(@D)
	@$(if $(Q),echo "  LD      $@")
	$(Q)$(CC) $(CFLAGS) $(SANFLAGS) $(if $(LIBFUZZER),-fsanitize=fuzzer) -o $@ $^ $(LDLIBS)

fuzz-build: $(FUZZERS)
fuzz:
	$(Q)$(MAKE) fuzz-build
	$(Q)$(MAKE) fuzz-build O=build/fuzz CC=clang LIBFUZZER=1 \
		SANFLAGS="-fsanitize=address,undefined,fuzzer-no-link -fno-sanitize-recover=undefined"
	$(Q)tests/fuzz/run build build/fuzz $(FUZZ_SECONDS) $(notdir $(FUZZERS))

unit-build: $(UNIT_TESTS) $(FUZZERS)
unit: unit-build
	$(Q)tests/unit/run $(UNIT_TESTS) $(FUZZERS)

# Fleets of processes that are killed at every step: the tests, and an agent whose cache is in them.
CLUSTER_TESTS := chaos_host handover handover_target random_ops push_steps volumes
CLUSTER_WORLD := $(call objs,$(addprefix tests/cluster/,world.c guest.c strike.c cache_host.c))
CLUSTER_WRAP  := cluster_push_begin cluster_push_block cluster_mutation_submit cluster_mutate \
                 agent_warm
$(CLUSTER_TESTS:%=$(O)/tests/cluster/%): $(O)/tests/cluster/%: $(O)/obj/tests/cluster/%.o \
		$(CLUSTER_WORLD) $(LIBS)
	@mkdir -p $(@D)
	@$(if $(Q),echo "  LD      $@")
	$(Q)$(CC) $(CFLAGS) $(SANFLAGS) -o $@ $^ $(LDLIBS)
$(O)/tests/cluster/random_ops: $(call objs,tests/cluster/random_model.c)
$(O)/tests/cluster/host_agent: $(call objs,$(addprefix tests/cluster/,host_agent.c cache_socket.c)) \
		$(LIBS)
	@mkdir -p $(@D)
	@$(if $(Q),echo "  LD      $@")
	$(Q)$(CC) $(CFLAGS) $(SANFLAGS) -o $@ $(CLUSTER_WRAP:%=-Wl,--wrap=%) $^ $(LDLIBS)
cluster-build: all $(CLUSTER_TESTS:%=$(O)/tests/cluster/%) $(O)/tests/cluster/host_agent

# Programs of the tests that run in a VM: of one file, or of all in one folder.
SELFTEST_PROGRAMS := $(patsubst tests/selftests/%.c,$(O)/selftests/%,$(wildcard tests/selftests/*.c))
SELFTEST_FOLDERS := $(patsubst tests/selftests/%/,$(O)/selftests/%,$(wildcard tests/selftests/*/))
$(SELFTEST_PROGRAMS): $(O)/selftests/%: $(O)/obj/tests/selftests/%.o
$(foreach p,$(notdir $(SELFTEST_FOLDERS)),\
	$(eval $(O)/selftests/$p: $(call objs,$(wildcard tests/selftests/$p/*.c))))
$(SELFTEST_PROGRAMS) $(SELFTEST_FOLDERS):
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(SANFLAGS) -o $@ $^ -lpthread $(SELFTEST_LIBS)
$(O)/selftests/void_slots: $(LIBS)
$(O)/selftests/snapshot_load: SELFTEST_LIBS := -lsqlite3
selftest-build: $(SELFTEST_PROGRAMS) $(SELFTEST_FOLDERS)

$(O)/tests/crash/disk: $(O)/obj/tests/crash/disk.o
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(SANFLAGS) -o $@ $^
$(O)/tests/crash/replay: $(addprefix $(O)/obj/tests/crash/,replay.o verify.o) $(LIBS)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(SANFLAGS) -o $@ $^ $(LDLIBS)
$(O)/tests/crash/step_agent: $(O)/obj/tests/crash/step_agent.o $(LIBS)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(SANFLAGS) -o $@ -Wl,--wrap=cluster_mutate -Wl,--wrap=agent_warm $^ $(LDLIBS)
crash-build: selftest-build $(addprefix $(O)/tests/crash/,disk replay step_agent)

$(O)/tests/cluster/history: $(O)/obj/tests/cluster/history.o $(LIBS)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(SANFLAGS) -o $@ $^ $(LDLIBS)
cluster-build: $(O)/tests/cluster/history

# Many clients of one data server.
$(O)/tests/cluster/clients: $(O)/obj/tests/cluster/clients.o $(LIBS)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(SANFLAGS) -o $@ $^ $(LDLIBS)
cluster-build: $(O)/tests/cluster/clients

# Many hosts in one program.
$(O)/tests/cluster/swarm: $(O)/obj/tests/cluster/swarm.o $(LIBS)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(SANFLAGS) -o $@ $^ $(LDLIBS)
cluster-build: $(O)/tests/cluster/swarm

BENCHES := $(patsubst tests/bench/%.c,$(O)/tests/bench/%,$(wildcard tests/bench/*.c))
$(O)/tests/bench/%: $(O)/obj/tests/bench/%.o $(LIBS)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(SANFLAGS) -o $@ $^ $(LDLIBS)
# It drives the core as the unit tests do.
$(O)/tests/bench/meta: $(O)/obj/tests/bench/meta.o \
		$(call objs,$(addprefix tests/unit/,meta_world.c pg_cluster.c)) $(LIBS)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(SANFLAGS) -o $@ $^ -lcmocka $(LDLIBS)
$(O)/tests/bench/swarm_sim: $(O)/obj/tests/bench/swarm_sim.o $(SIM_OBJS) $(LIBS)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(SANFLAGS) -o $@ $^ $(LDLIBS)
$(O)/tests/bench/cluster_sim: $(O)/obj/tests/bench/cluster_sim.o \
		$(call objs,$(addprefix tests/unit/,meta_world.c pg_cluster.c)) $(LIBS)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(SANFLAGS) -o $@ $^ -lcmocka $(LDLIBS)
bench-build: $(BENCHES)

# --- kernel ----------------------------------------------------------------------------------
# MO= builds out of the tree, so that several kernels' builds never meet.
MO ?= build/module/$(notdir $(patsubst %/,%,$(KDIR)))
modules:
	$(Q)tools/build-module --kdir $(KDIR) --out $(MO) $(MODULE_ARGS)

# --- install ---------------------------------------------------------------------------------
install: all
	$(Q)tools/install-files --out $(O) --destdir "$(DESTDIR)" --prefix "$(PREFIX)" --version $(VERSION)

clean:
	rm -rf build

.PHONY: all selftest-build crash-build unit unit-build cluster-build fuzz fuzz-build bench-build modules install clean
.SECONDARY:
-include $(shell find $(O)/obj $(O)/few -name '*.d' 2>/dev/null)
