/* A stretch of wire between a proxy and its upstream: everything arrives half a round trip later.
 *
 *   relay LISTEN_PORT UPSTREAM_PORT ROUND_TRIP_MICROSECONDS
 *
 * Both ends are on 127.0.0.1, so the kernel makes each connection at once. What a real one would have waited for its
 * making, one round trip, is added to the first bytes that are sent on it instead: in sum the same. For machines
 * whose kernel has no netem, and for callers who are not root. Loss and slow start are not modelled.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { CHUNK = 1 << 16, MOST_EVENTS = 512, MOST_UNDER_WAY = 1 << 24 };
static const int64_t SECOND = 1000000000;

struct chunk {
    struct chunk *next;
    int64_t due;
    int length, gone; /* a length of 0 is the end */
    char data[];
};

struct way { /* what goes from one end of a pair to the other */
    struct pair *pair;
    int from, to, ended, waits_for_room, paused;
    struct chunk *first, *last;
    int64_t under_way;
};

struct pair {
    struct way ways[2];
    int begun;   /* the first bytes have been sent */
    int timers;  /* in the heap; while there are some the pair stays */
    int closed;
    struct pair *next_dead;
};

struct timer {
    int64_t due;
    struct way *way;
};

static struct timer *heap;
static size_t timers, room;
static int poller;
static int64_t round_trip;
static struct sockaddr_in upstream = {.sin_family = AF_INET};
static struct pair *dead; /* freed once all events of a turn have been seen */

static void die(const char *what) {
    perror(what);
    exit(2);
}

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * SECOND + t.tv_nsec;
}

static void push(int64_t due, struct way *way) {
    if (timers == room && !(heap = realloc(heap, (room = room ? 2 * room : 1024) * sizeof *heap))) die("realloc");
    size_t at = timers++;
    for (; at && heap[(at - 1) / 2].due > due; at = (at - 1) / 2) heap[at] = heap[(at - 1) / 2];
    heap[at] = (struct timer){due, way};
    way->pair->timers++;
}

static struct way *pop(void) {
    struct way *way = heap[0].way;
    struct timer moved = heap[--timers];
    size_t at = 0;
    for (size_t child; (child = 2 * at + 1) < timers; at = child) {
        if (child + 1 < timers && heap[child + 1].due < heap[child].due) child++;
        if (moved.due <= heap[child].due) break;
        heap[at] = heap[child];
    }
    heap[at] = moved;
    way->pair->timers--;
    return way;
}

static void watch(struct pair *pair, int end, int operation) { /* end 0: the proxy's side; 1: the upstream's */
    struct way *in = &pair->ways[end], *out = &pair->ways[!end];
    int events = (in->ended || in->paused ? 0 : EPOLLIN) | (out->waits_for_room ? EPOLLOUT : 0);
    struct epoll_event event = {.events = events, .data.ptr = in};
    if (epoll_ctl(poller, operation, in->from, &event) && errno != ENOENT) die("epoll_ctl");
}

static void bury(struct pair *pair) {
    if (pair->closed && !pair->timers) {
        pair->next_dead = dead;
        dead = pair;
    }
}

static void cut(struct pair *pair) {
    if (pair->closed) return;
    pair->closed = 1;
    close(pair->ways[0].from);
    close(pair->ways[1].from);
    bury(pair);
}

static void deliver(struct way *way, int64_t at) {
    struct pair *pair = way->pair;
    int end = way == &pair->ways[0], waited = way->waits_for_room;
    way->waits_for_room = 0;
    for (struct chunk *c; (c = way->first) && c->due <= at;) {
        if (c->length == 0) shutdown(way->to, SHUT_WR);
        while (c->gone < c->length) {
            ssize_t count = send(way->to, c->data + c->gone, c->length - c->gone, MSG_NOSIGNAL);
            if (count < 0 && errno == EAGAIN) {
                way->waits_for_room = 1;
                if (!waited) watch(pair, end, EPOLL_CTL_MOD);
                return;
            }
            if (count < 0) {
                cut(pair);
                return;
            }
            c->gone += count;
        }
        way->under_way -= c->length;
        if (!(way->first = c->next)) way->last = NULL;
        free(c);
    }
    if (waited) watch(pair, end, EPOLL_CTL_MOD);
    if (way->paused && way->under_way < MOST_UNDER_WAY / 2) {
        way->paused = 0;
        watch(pair, !end, EPOLL_CTL_MOD);
    }
    if (pair->ways[0].ended && pair->ways[1].ended && !pair->ways[0].first && !pair->ways[1].first) cut(pair);
}

static void take(struct way *way) {
    struct pair *pair = way->pair;
    static char data[CHUNK];
    ssize_t count = recv(way->from, data, CHUNK, 0);
    if (count < 0) {
        if (errno != EAGAIN) cut(pair);
        return;
    }
    struct chunk *c = malloc(sizeof *c + count);
    if (!c) die("malloc");
    memcpy(c->data, data, count);
    c->next = NULL;
    c->length = count;
    c->gone = 0;
    c->due = now() + round_trip / 2;
    if (way == &pair->ways[0] && !pair->begun) {
        pair->begun = 1;
        c->due += round_trip;
    }
    if (way->last && way->last->due > c->due) c->due = way->last->due;
    if (way->last) way->last->next = c;
    else way->first = c;
    way->last = c;
    way->under_way += count;
    way->ended = count == 0;
    way->paused = way->under_way >= MOST_UNDER_WAY;
    if (way->ended || way->paused) watch(pair, way == &pair->ways[1], EPOLL_CTL_MOD);
    push(c->due, way);
}

static void let_in(int listening) {
    int one = 1, near = accept4(listening, NULL, NULL, SOCK_NONBLOCK);
    if (near < 0) return;
    int far = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct pair *pair = calloc(1, sizeof *pair);
    if (far < 0 || !pair) die("socket");
    if (connect(far, (struct sockaddr *)&upstream, sizeof upstream) && errno != EINPROGRESS) {
        close(near);
        close(far);
        free(pair);
        return;
    }
    setsockopt(near, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(far, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    pair->ways[0] = (struct way){.pair = pair, .from = near, .to = far};
    pair->ways[1] = (struct way){.pair = pair, .from = far, .to = near};
    watch(pair, 0, EPOLL_CTL_ADD);
    watch(pair, 1, EPOLL_CTL_ADD);
}

int main(int count, char **arguments) {
    if (count != 4) {
        fprintf(stderr, "see the head of relay.c for its arguments\n");
        return 2;
    }
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(atoi(arguments[1]))};
    here.sin_addr.s_addr = upstream.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    upstream.sin_port = htons(atoi(arguments[2]));
    round_trip = atoll(arguments[3]) * 1000;
    int one = 1, listening = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listening, (struct sockaddr *)&here, sizeof here) || listen(listening, 4096)) die("bind");
    poller = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN}, events[MOST_EVENTS];
    if (epoll_ctl(poller, EPOLL_CTL_ADD, listening, &event)) die("epoll_ctl");
    prctl(PR_SET_TIMERSLACK, 1);
    for (;;) {
        int64_t at = now();
        while (timers && heap[0].due <= at) {
            struct way *way = pop();
            if (!way->pair->closed) deliver(way, at);
            else bury(way->pair);
        }
        int64_t wait = timers ? heap[0].due - at : SECOND;
        struct timespec timeout = {wait / SECOND, wait % SECOND};
        int ready = epoll_pwait2(poller, events, MOST_EVENTS, &timeout, NULL);
        if (ready < 0 && errno != EINTR) die("epoll_pwait2");
        at = now();
        for (int i = 0; i < ready; i++) {
            struct way *way = events[i].data.ptr;
            if (!way) {
                let_in(listening);
                continue;
            }
            struct pair *pair = way->pair;
            int end = way == &pair->ways[1];
            if (!pair->closed && events[i].events & EPOLLOUT) deliver(&pair->ways[!end], at);
            if (!pair->closed && events[i].events & (EPOLLIN | EPOLLERR | EPOLLHUP)) {
                if (!way->ended && !way->paused) take(way);
                else if (events[i].events & EPOLLERR) cut(pair);
                else if (events[i].events & EPOLLHUP) epoll_ctl(poller, EPOLL_CTL_DEL, way->from, NULL);
            }
        }
        for (struct pair *pair; (pair = dead);) {
            dead = pair->next_dead;
            for (int i = 0; i < 2; i++) {
                for (struct chunk *c; (c = pair->ways[i].first);) {
                    pair->ways[i].first = c->next;
                    free(c);
                }
            }
            free(pair);
        }
    }
}
