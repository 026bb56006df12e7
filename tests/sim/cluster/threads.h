/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Threads of simulated machines, in simulated time: the daemons' own threads, locks and waits run as
 * coroutines of one thread (the linker puts these functions in the place of pthread's, poll's and the
 * clock's). Who runs next is chosen by the seed: at every wait, and often when a lock is let go.
 */
#ifndef VMDEDUP_SIM_THREADS_H
#define VMDEDUP_SIM_THREADS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MAX_NODES   24
#define SIM_FD	    (1 << 20) /* eventfds from here on, ... */
#define SIM_NET_FD  (1 << 24) /* ... and the network's from here on: no files */

/* @logs: what the daemons log is shown. */
void threads_init(uint64_t seed, bool logs);
uint64_t threads_now(void);
/* Below @n; and true once in @n times. */
uint64_t sim_pick(uint64_t n);
static inline bool sim_one_in(uint64_t n)
{
	return !sim_pick(n);
}

unsigned int thread_node(void); /* of the thread that runs */
void thread_start(unsigned int node, void *(*fn)(void *arg), void *arg);
/* Until @ready(@arg), which must change nothing and look at this node's things only, or the time: what
 * @ready says then. */
bool thread_wait(bool (*ready)(void *arg), void *arg, uint64_t until_ns);
void thread_sleep(uint64_t ns);

/* A machine whose power is cut: its threads never run again, its memory is left alone. */
void node_kill(unsigned int node);
uint64_t node_life(unsigned int node); /* goes up with each kill */
void node_freeze(unsigned int node, uint64_t ns);
void node_changed(unsigned int node); /* what threads there wait for may have come */

/* Runs until @done(@arg) or until nothing can ever happen. @step runs between any two threads, and is told
 * whose thread has run. */
bool threads_run(bool (*done)(void *arg), void (*step)(void *arg, unsigned int node), void *arg);

bool sim_fd_readable(int fd);

/* net.c */
/* @late_rounds_in_100: of the questions by which a reconciliation begins and ends. */
void net_sim_init(unsigned int loss_in_10000, unsigned int slow_in_1000, unsigned int late_rounds_in_100,
		  uint64_t latency_ns);
void net_sim_calm(void); /* from now on nothing is lost or late */
uint64_t net_sim_next(void); /* when the next thing happens there; UINT64_MAX: nothing will */
void net_sim_run(void);	     /* what has happened until now */
void net_sim_killed(unsigned int node);
bool net_sim_readable(int fd);
/* The next SERVER_JOIN from there comes late. */
void net_sim_late_join(unsigned int node);
/* What the two send each other arrives when the time is over. */
void net_sim_cut(unsigned int a, unsigned int b, uint64_t ns);

#endif
