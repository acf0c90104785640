// Raw TLS 1.3 throughput, sender and receiver a thread each: the baseline that a migration's page transfer is compared
// with. Prints one JSON object.
//   tls_raw [MiB [STREAMS [tls|plain|openssl|copy [SOURCE DESTINATION ADDRESS]]]]
// "tls", "plain": our streams, and bytes that go nowhere. "openssl": OpenSSL's own blocking socket I/O, with 16 KiB
// records and nothing of ours, to keep the baseline honest. "copy": the same from memory into memory, as who copies it
// would have to. Over loopback, or between two network namespaces (files), of which the second has the address.
#include <fcntl.h>
#include <openssl/ssl.h>
#include <sched.h>
#include <sys/mman.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <future>
#include <iostream>
#include <thread>

#include "pageserver/keys.h"
#include "pageserver/tcp.h"
#include "pageserver/tls.h"

namespace migrate {
namespace {

constexpr size_t kSend = 1 << 20;
constexpr size_t kReceive = 256 << 10;

struct Result {
  double seconds;
  std::string protocol;
};

struct TempKeys {
  TempKeys() {
    std::string name = (std::filesystem::temp_directory_path() / "tls-raw-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw Error("make", name, errno);
    dir = name;
    make_keys({.dir = dir, .names = {"host"}});
  }
  ~TempKeys() {
    std::error_code ignored;
    std::filesystem::remove_all(dir, ignored);
  }
  std::string dir;
};

Deadline soon() { return Deadline::in(std::chrono::seconds(10)); }

/// Between which hosts; both empty: over loopback.
struct Cable {
  std::string source, destination, address = "127.0.0.1";
};

/// Sockets made from here on are of that network namespace.
void go_to(const std::string& network) {
  if (network.empty()) return;
  const Fd fd = open_path(network, O_RDONLY);
  check(::setns(fd.get(), CLONE_NEWNET), "enter", network);
}

/// A client at the source, a server at the destination.
std::pair<Fd, Fd> connected(const Cable& cable = {}) {
  go_to(cable.destination);
  Listener listener({cable.address, 0});
  go_to(cable.source);
  Fd client = connect_tcp({cable.address, listener.port()}, soon());
  return {std::move(client), *listener.accept(nullptr, soon())};
}

/// Fresh memory; with contents that differ from page to page.
class Memory {
 public:
  Memory(uint64_t bytes, bool filled) : bytes_(bytes) {
    void* at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) throw Error("map", "memory", errno);
    at_ = static_cast<uint64_t*>(at);
    for (uint64_t i = 0; filled && i < bytes / sizeof(uint64_t); ++i) at_[i] = i * 0xD1B54A32D192ED03ULL;
  }
  ~Memory() { ::munmap(at_, bytes_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  char* data() const { return reinterpret_cast<char*>(at_); }  // NOLINT: bytes

 private:
  uint64_t bytes_;
  uint64_t* at_ = nullptr;
};

/// Ours: what page streams use.
Result run_streams(const TlsConfig* config, size_t count, uint64_t bytes_each) {
  std::vector<std::unique_ptr<Stream>> out, in;
  for (size_t i = 0; i < count; ++i) {
    auto [client, server] = connected();
    auto accepting = std::async(std::launch::async, [&, fd = &server] {
      return config != nullptr ? TlsContext(*config).accept(std::move(*fd), soon())
                               : accept_plain(std::move(*fd), soon());
    });
    out.push_back(config != nullptr ? TlsContext(*config).connect(std::move(client), "host", soon())
                                    : connect_plain(std::move(client), soon()));
    in.push_back(accepting.get());
  }
  const auto start = std::chrono::steady_clock::now();
  {
    std::vector<std::jthread> threads;
    for (size_t i = 0; i < count; ++i) {
      threads.emplace_back([&, i] {
        const std::vector<std::byte> data(kSend, std::byte{0x5a});
        for (uint64_t sent = 0; sent < bytes_each; sent += kSend) out[i]->write(data);
      });
      threads.emplace_back([&, i] {
        std::vector<std::byte> data(kReceive);
        for (uint64_t got = 0; got < bytes_each; got += kReceive) in[i]->read_exact(data);
      });
    }
  }
  const std::chrono::duration<double> span = std::chrono::steady_clock::now() - start;
  return {span.count(), out[0]->description()};
}

SSL* bare_ssl(SSL_CTX* context, const Fd& fd, bool server) {
  ::fcntl(fd.get(), F_SETFL, ::fcntl(fd.get(), F_GETFL) & ~O_NONBLOCK);
  SSL* ssl = SSL_new(context);
  SSL_set_fd(ssl, fd.get());
  server ? SSL_set_accept_state(ssl) : SSL_set_connect_state(ssl);
  return ssl;
}

/// OpenSSL's own, with nothing of ours in between. `copy`: memory, not the same bytes again and again.
Result run_openssl(const TlsConfig& config, std::pair<Fd, Fd> sockets, uint64_t bytes, bool copy) {
  auto [client, server] = std::move(sockets);
  const Memory from(copy ? bytes : kSend, true), to(copy ? bytes : kReceive, false);
  SSL_CTX* context = SSL_CTX_new(TLS_method());
  SSL_CTX_use_certificate_chain_file(context, config.cert.c_str());
  SSL_CTX_use_PrivateKey_file(context, config.key.c_str(), SSL_FILETYPE_PEM);
  SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256");
  SSL* a = bare_ssl(context, client, false);
  SSL* b = bare_ssl(context, server, true);
  auto accepting = std::async(std::launch::async, [&] { return SSL_do_handshake(b); });
  if (SSL_do_handshake(a) != 1 || accepting.get() != 1) throw Error("handshake failed");
  const auto start = std::chrono::steady_clock::now();
  {
    const std::jthread sender([&] {
      for (uint64_t sent = 0; sent < bytes; sent += kSend) SSL_write(a, from.data() + (copy ? sent : 0), kSend);
    });
    for (uint64_t got = 0; got < bytes;) {
      const uint64_t most = std::min<uint64_t>(kReceive, bytes - got);
      const int n = SSL_read(b, to.data() + (copy ? got : 0), static_cast<int>(most));
      if (n <= 0) throw Error("read failed");
      got += static_cast<uint64_t>(n);
    }
  }
  const std::chrono::duration<double> span = std::chrono::steady_clock::now() - start;
  const std::string protocol = std::string(SSL_get_version(a)) + " " + SSL_get_cipher_name(a);
  SSL_free(a);
  SSL_free(b);
  SSL_CTX_free(context);
  return {span.count(), protocol};
}

/// Streams beside each other: the slowest counts.
Result run_openssl_streams(const TlsConfig& config, const Cable& cable, size_t count, uint64_t bytes_each, bool copy) {
  std::vector<std::future<Result>> running;
  for (size_t i = 0; i < count; ++i)
    running.push_back(std::async(std::launch::async, [&, sockets = connected(cable)]() mutable {
      return run_openssl(config, std::move(sockets), bytes_each, copy);
    }));
  Result slowest{};
  for (auto& one : running) {
    const Result result = one.get();
    if (result.seconds > slowest.seconds) slowest = result;
  }
  return slowest;
}

int run(int argc, char** argv) {
  const uint64_t mib = argc > 1 ? std::stoull(argv[1]) : 2048;
  const size_t streams = argc > 2 ? std::stoul(argv[2]) : 1;
  const std::string mode = argc > 3 ? argv[3] : "tls";
  const TempKeys keys;
  const TlsConfig config{.cacert = keys.dir + "/ca.crt", .cert = keys.dir + "/host.crt", .key = keys.dir + "/host.key"};
  const uint64_t bytes = (mib << 20) / streams;
  Cable cable;
  if (argc > 6) cable = {argv[4], argv[5], argv[6]};
  const bool copy = mode == "copy";
  const Result result = copy || mode == "openssl" ? run_openssl_streams(config, cable, streams, bytes, copy)
                                                  : run_streams(mode == "plain" ? nullptr : &config, streams, bytes);
  const double total = static_cast<double>(bytes) * static_cast<double>(streams);
  std::printf(
      "{\"mode\":\"%s\",\"protocol\":\"%s\",\"streams\":%zu,\"bytes\":%.0f,\"seconds\":%.4f,\"bytes_per_second\":%.0f}"
      "\n",
      mode.c_str(), result.protocol.c_str(), streams, total, result.seconds, total / result.seconds);
  return 0;
}

}  // namespace
}  // namespace migrate

int main(int argc, char** argv) {
  try {
    return migrate::run(argc, argv);
  } catch (const std::exception& e) {
    std::cerr << "tls_raw: " << e.what() << '\n';
    return 1;
  }
}
