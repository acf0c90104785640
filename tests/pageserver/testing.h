// Helpers of the pageserver tests: connected pairs, keys in a temporary folder, and a second thread with its outcome.
#pragma once

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <filesystem>
#include <future>
#include <thread>

#include "pageserver/keys.h"
#include "pageserver/tcp.h"
#include "pageserver/tls.h"

namespace migrate::testing {

inline Deadline soon() { return Deadline::in(std::chrono::seconds(20)); }

struct TempDir {
  TempDir() {
    std::string name = ::testing::TempDir() + "migrate-test-XXXXXX";
    if (::mkdtemp(name.data()) == nullptr) throw Error("make", name, errno);
    path = name;
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  std::string path;
};

struct Pair {
  Fd client, server;
};

inline Pair tcp_pair() {
  Listener listener({"127.0.0.1", 0});
  Pair pair;
  pair.client = connect_tcp({"127.0.0.1", listener.port()}, soon());
  pair.server = *listener.accept(nullptr, soon());
  return pair;
}

inline Pair unix_pair() {
  int fds[2];
  check(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), "make", "socket pair");
  return {Fd(fds[0]), Fd(fds[1])};
}

inline TlsConfig tls_config(const std::string& dir, const std::string& name) {
  TlsConfig config;
  config.cacert = dir + "/ca.crt";
  config.cert = dir + "/" + name + ".crt";
  config.key = dir + "/" + name + ".key";
  return config;
}

/// What a side ended with: a stream, or the sentence of its exception.
struct Outcome {
  std::unique_ptr<Stream> stream;
  std::string error;
  bool refused = false;
};

template <class Make>
Outcome outcome_of(Make&& make) {
  Outcome out;
  try {
    out.stream = make();
  } catch (const Refusal& e) {
    out.error = e.what();
    out.refused = true;
  } catch (const std::exception& e) {
    out.error = e.what();
  }
  return out;
}

/// Both sides at once.
template <class Client, class Server>
std::pair<Outcome, Outcome> both(Client&& client, Server&& server) {
  auto other = std::async(std::launch::async, [&] { return outcome_of(server); });
  Outcome mine = outcome_of(client);
  return {std::move(mine), other.get()};
}

inline std::pair<std::unique_ptr<Stream>, std::unique_ptr<Stream>> raw_pair() {
  Pair p = unix_pair();
  return {raw_stream(std::move(p.client)), raw_stream(std::move(p.server))};
}

inline std::vector<std::byte> random_bytes(size_t size, uint64_t seed) {
  std::vector<std::byte> out(size);
  uint64_t x = seed * 0x9e3779b97f4a7c15 + 1;
  for (auto& b : out) {
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    b = static_cast<std::byte>(x >> 32);
  }
  return out;
}

}  // namespace migrate::testing
