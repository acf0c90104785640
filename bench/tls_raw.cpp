// Raw TLS 1.3 throughput over loopback, sender and receiver a thread each, bytes that go nowhere: the baseline that a
// migration's page transfer is compared with. Prints one JSON object.
//   tls_raw [MiB [STREAMS [plain|openssl]]]
// "openssl": OpenSSL's own blocking socket I/O, with 16 KiB records and nothing of ours, to keep the baseline honest.
#include <openssl/ssl.h>

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

std::pair<Fd, Fd> connected() {
  Listener listener({"127.0.0.1", 0});
  Fd client = connect_tcp({"127.0.0.1", listener.port()}, soon());
  return {std::move(client), *listener.accept(nullptr, soon())};
}

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

/// OpenSSL's own, with nothing of ours in between.
Result run_openssl(const TlsConfig& config, uint64_t bytes) {
  auto [client, server] = connected();
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
      const std::vector<char> data(kSend, 0x5a);
      for (uint64_t sent = 0; sent < bytes; sent += kSend) SSL_write(a, data.data(), static_cast<int>(data.size()));
    });
    std::vector<char> data(kReceive);
    for (uint64_t got = 0; got < bytes;) {
      const int n = SSL_read(b, data.data(), static_cast<int>(data.size()));
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
Result run_openssl_streams(const TlsConfig& config, size_t count, uint64_t bytes_each) {
  std::vector<std::future<Result>> running;
  for (size_t i = 0; i < count; ++i)
    running.push_back(std::async(std::launch::async, [&] { return run_openssl(config, bytes_each); }));
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
  const Result result = mode == "openssl" ? run_openssl_streams(config, streams, bytes)
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
