//! The configurations in `nginx-conf/`.

use std::fs;

use nginx_consul_e2e::tls::Authority;
use nginx_consul_e2e::{Config, nginx};

/// Has `nginx -t` read an example, with the paths of an installation replaced by those of a test.
#[track_caller]
fn accepted(name: &str) {
    let path = nginx::workspace().join("nginx-conf").join(name);
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let installed = "modules/ngx_http_consul_module.so";
    assert!(text.contains(installed), "{name} doesn't load the module");
    let text = text
        .replace(installed, &nginx::module().display().to_string())
        .replace("/etc/nginx/consul/", "%%PREFIX%%/")
        .replace("/var/log/nginx/", "%%PREFIX%%/")
        .replace("/run/nginx.pid", "%%PREFIX%%/nginx.pid")
        .replace("listen 8080;", "listen 127.0.0.1:%%PORT%%;");
    let authority = Authority::new();
    let client = authority.issue(&["gateway.example"]);
    let checked = Config::whole(&text)
        .file("token", "00000000-0000-4000-8000-000000000000\n")
        .file("ca.pem", authority.pem())
        .file("client.pem", client.certificate)
        .file("client.key", client.key)
        .check();
    assert!(checked.passed, "{name}: {}", checked.output);
    assert!(!checked.output.contains("[warn]"), "{name}: {}", checked.output);
}

#[test]
fn the_minimal_example_is_accepted() {
    accepted("minimal.conf");
}

#[test]
fn the_gateway_example_is_accepted() {
    accepted("gateway.conf");
}

#[test]
fn the_example_for_any_service_is_accepted() {
    accepted("any-service.conf");
}

#[test]
fn the_example_for_operators_is_accepted() {
    accepted("operator.conf");
}

#[test]
fn the_example_of_every_directive_is_accepted_and_has_them_all() {
    accepted("every-directive.conf");
    let path = nginx::workspace().join("nginx-conf/every-directive.conf");
    let text = fs::read_to_string(path).expect("the example");
    for name in directives() {
        let used = text.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|w| w == name);
        assert!(used, "{name} is missing");
    }
}

#[test]
fn every_directive_has_a_section_in_the_readme_with_syntax_default_and_context() {
    let readme = fs::read_to_string(nginx::workspace().join("README.md")).expect("README.md");
    let is_whole = |section: &str| {
        ["**Syntax:**", "**Default:**", "**Context:**"].iter().all(|part| section.contains(part))
    };
    for name in directives() {
        let mut sections = readme.split("\n### ").skip(1);
        let section = sections.find(|section| {
            let heading = section.lines().next().unwrap_or_default();
            heading.split(", ").any(|word| word == name)
        });
        let section = section.unwrap_or_else(|| panic!("README.md has no section {name}"));
        assert!(is_whole(section), "README.md, section {name}: no syntax, default or context");
        assert!(
            section.contains(&format!("`{name} ")) || section.contains(&format!("`{name};")),
            "{name}"
        );
    }
}

#[test]
fn the_example_of_every_directive_has_every_variable() {
    let read = |name: &str| {
        fs::read_to_string(nginx::workspace().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    };
    let (source, text) = (read("src/module/variables.rs"), read("nginx-conf/every-directive.conf"));
    let names: Vec<&str> =
        source.split("b\"consul_").skip(1).filter_map(|s| s.split('"').next()).collect();
    assert!(names.len() == 8, "{names:?}");
    for name in names {
        let is_used = text.split("$consul_").skip(1).any(|word| {
            let end = word.find(|c: char| !(c.is_alphanumeric() || c == '_'));
            let word = &word[..end.unwrap_or(word.len())];
            word == name || (name.ends_with('_') && word.starts_with(name))
        });
        assert!(is_used, "$consul_{name} is missing");
    }
}

/// The directives' names, out of the module's own tables.
fn directives() -> Vec<String> {
    let tables = ["commands.rs", "settings.rs"].map(|table| {
        let path = nginx::workspace().join("src/module/conf").join(table);
        fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    });
    let source = tables.concat();
    let words = source.split("c\"consul_").skip(1).filter_map(|rest| rest.split('"').next());
    let names: Vec<String> = words.map(|name| format!("consul_{name}")).collect();
    assert!(names.len() == 34, "{names:?}");
    names
}
