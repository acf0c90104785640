// Keys for people who have none: a small CA and host certificates (`migrate keys`).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace migrate {

struct KeyOptions {
  std::string dir;                 ///< made (0700) if it does not exist
  std::vector<std::string> names;  ///< DNS names or IP addresses, a certificate each; none: a CA only
  bool force = false;              ///< replace host certificates that exist; the CA is never replaced
  int64_t host_not_before = -300;  ///< seconds from now (a peer's clock may be a little behind)
  int64_t host_not_after = int64_t{825} * 86400;
  int64_t ca_not_after = int64_t{3650} * 86400;
};

/// Writes ca.crt, ca.key and NAME.crt, NAME.key (ECDSA P-256; keys 0600). A CA found in `dir` signs the further hosts.
/// Returns the files written. Refusal if a file exists (without force) or a name cannot be a file name.
std::vector<std::string> make_keys(const KeyOptions& options);

/// Writes ca.crl, which revokes the given certificate files (PEM) of this CA, for `TlsConfig::crl`.
std::string revoke(const std::string& dir, const std::vector<std::string>& cert_files);

/// What is wrong with the dates of a certificate that we show, now or within `soon` seconds; empty: nothing.
std::string dates_of(const std::string& certificate, int64_t soon);

/// Refusal with `remedy` unless we may read the file, which is the `what`; `if_forbidden`: the remedy for EACCES, if
/// that is another.
void check_readable(const std::string& path, const char* what, const char* remedy, const char* if_forbidden = nullptr);

}  // namespace migrate
