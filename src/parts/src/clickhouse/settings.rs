//! The settings files of a server.

use super::http::Client;
use std::path::Path;

/// The server's own settings.
pub(super) fn config(client: &Client, home: &Path) -> String {
    format!(
        "<clickhouse>
    <logger><level>warning</level><console>1</console></logger>
    <http_port>{port}</http_port>
    <listen_host>127.0.0.1</listen_host>
    <path>{data}/</path>
    <tmp_path>{data}/tmp/</tmp_path>
    <users_config>users.xml</users_config>
    <max_server_memory_usage>4000000000</max_server_memory_usage>
    <query_log>
        <database>system</database>
        <table>query_log</table>
        <flush_interval_milliseconds>1000</flush_interval_milliseconds>
    </query_log>
</clickhouse>
",
        port = client.port,
        data = home.join("data").display(),
    )
}

/// Who may connect, from this machine. The engine of the library starts as `default` without a password, so that one is
/// there as well; everything else is done as the other user.
pub(super) fn users(client: &Client, read_only: bool) -> String {
    format!(
        "<clickhouse>
    <profiles>
        <default>
            <implicit_select>0</implicit_select>
            <allow_introspection_functions>0</allow_introspection_functions>
            <storage_file_read_method>pread</storage_file_read_method>
        </default>
        <clients>
            <profile>default</profile>
            <readonly>{read_only}</readonly>
        </clients>
    </profiles>
    <quotas><default/></quotas>
    <users>
        <default>
            <password/>
            <networks><ip>127.0.0.1</ip></networks>
            <profile>default</profile>
            <quota>default</quota>
        </default>
        <{user}>
            <password>{password}</password>
            <networks><ip>127.0.0.1</ip></networks>
            <profile>clients</profile>
            <quota>default</quota>
        </{user}>
    </users>
</clickhouse>
",
        read_only = u8::from(read_only),
        user = client.user,
        password = client.password,
    )
}

/// What makes an engine that was started for local queries listen.
pub(super) const LISTEN: &str = "SYSTEM START LISTEN HTTP;\n";
